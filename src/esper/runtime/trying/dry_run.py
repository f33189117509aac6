"""What could break only once something grows, tried at the first step: a newborn graft at every place at once.

It adds exactly nothing, so not a bit of the loss may change; and its last layer gets a gradient wherever the output
that it is added to gets one. A graft that lies behind the loss, or within a part of the forward pass that is thrown
away and made again (checkpointing), gets none.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError
from esper.contracts.events import Note
from esper.contracts.lifecycle import State
from esper.kasmina.host.comparing import FAULTS, told
from esper.kasmina.host.layer import KasminaLayer
from esper.kasmina.host.wrapping import traced
from esper.kasmina.outputs import written_tensor
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.runtime.run import Run
from esper.runtime.state.batches import copy_of

TOLERANCE = 1e-3
"""Of losses, relative, where work that is done once more has other bytes."""

NO_GRADIENT = (
    "no gradient reaches a graft there: it would be added where nothing reads it any more (the loss is computed "
    "already), or to a part of a span that is checkpointed by itself"
)
NOT_FINITE = "what a graft there reads, or would add, is not finite"


def dry_run(run: Run, batch: Any) -> None:
    """Let every place grow and train on copies of a batch; all is undone, to the byte.

    Two passes forward and backward, and more only to find out where it fails. Places that fail are left out from then
    on, and told with the reason. No FLOPs are counted.

    Args:
        run: before or after its first step. Nothing is tried where it may not grow, or calls compiled models.
        batch: of that step, as it was before it.

    Raises:
        ConfigError: if a place fails that was named, or all of them do.
    """
    if run.tracing.rows is not None or not run.config.max_rounds or run.costs.is_compiled():
        return
    try:
        copy_of(batch)
    except TypeError:  # what cannot be copied can be used only once
        return
    failed = _Trial(run, batch).failures()
    named = [name for name in failed if name in (run.config.layers or ())]
    if named:
        raise ConfigError(f"{_called(named[0])} cannot grow: {failed[named[0]]}. Name other places in layers.")
    if failed and len(failed) == len(run.places):
        raise ConfigError(
            f"No place can grow. {_called(next(iter(failed)))}: {failed[next(iter(failed))]}. Name other places in "
            "layers, or set max_rounds=0, which never grows."
        )
    for reason in dict.fromkeys(failed.values()):
        names = ", ".join(_called(name) for name, why in failed.items() if why == reason)
        run.journal.write(Note(text=f"Left out, nothing will grow there: {names}; {reason}."))
    run.tracing.left_out |= failed


class _Trial:
    """Passes over copies of one batch, each undone.

    Args:
        run: the run.
        batch: the batch.
    """

    def __init__(self, run: Run, batch: Any) -> None:
        self._run, self._batch = run, batch
        self._rtol = 0.0 if run.is_repeatable else TOLERANCE
        self._reached: set[str] = set()
        self._loss = self._bare()

    def failures(self) -> dict[str, str]:
        """Why places cannot grow, by name."""
        reached = [name for names in self._run.ranks.gather(self._reached, "places that are reached") for name in names]
        free = [name for name in dict.fromkeys(reached) if not self._run.places[name].state.lifecycle.any()]
        return self._failures(sorted(free, key=list(self._run.places).index)) if math.isfinite(self._loss) else {}

    def _failures(self, names: Sequence[str]) -> dict[str, str]:
        """The same of some of them, in halves where they fail together."""
        if not names:
            return {}
        try:
            loss, failed = self._grown(names)
            if self._is_same(loss):
                return failed
            reason = "a graft that adds nothing changes the loss there"
        except FAULTS as error:
            reason = f"the step fails with a graft there ({told(error)})"
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        return self._failures(names[:half]) | self._failures(names[half:])

    def _is_same(self, loss: float) -> bool:
        """Whether a loss is that of the bare model; also where the bare model's is another each time."""
        if math.isclose(loss, self._loss, rel_tol=self._rtol):
            return True
        again = self._bare()
        if again != self._loss:
            self._rtol = math.inf
        return self._rtol == math.inf or math.isclose(loss, self._loss, rel_tol=self._rtol)

    def _bare(self) -> float:
        """The loss of the model as it is; notes which places get a gradient at what they write. Where it is zero, as
        behind closed activations, a graft there may be what opens them."""
        with self._run.undone(), ExitStack() as undo:
            for name, module, place in _ends(self._run.model):

                def tap(_: nn.Module, __: Any, output: Any, name: str = name, place: Place = place) -> None:
                    y = written_tensor(output, place.site.field)
                    if y is not None and y.requires_grad and not torch._C._are_functorch_transforms_active():
                        y.register_hook(lambda gradient: self._reached.update([name] * _is_usable(gradient)))

                undo.callback(module.register_forward_hook(tap).remove)
            with traced(self._run.model):
                return self._pass()

    def _grown(self, names: Sequence[str]) -> tuple[float, dict[str, str]]:
        """The loss with newborn grafts at places, and why some of them would not learn."""
        learning: dict[str, bool] = {}
        with self._run.undone(), ExitStack() as undo:
            for number, name in enumerate(names, start=1):
                place = self._run.places[name]
                _plant(place, number)

                def note(gradient: Tensor, name: str = name) -> None:
                    learning[name] = _is_usable(gradient)

                undo.callback(place.arena.slots.register_hook(note).remove)
            loss = self._pass()
        for others in self._run.ranks.gather(learning, "places that learn"):
            learning |= {name: True for name, learns in others.items() if learns}
        failed = {name: NOT_FINITE if name in learning else NO_GRADIENT for name in names if not learning.get(name)}
        return loss, failed

    def _pass(self) -> float:
        with torch.compiler.set_stance("force_eager"):  # what is compiled within the loss is not known beforehand
            return float(self._run.trainer.differentiate(copy_of(self._batch)))


def _is_usable(gradient: Tensor) -> bool:
    """Whether it is finite and not all zero; waits for the device."""
    return 0 < float(gradient.detach().abs().sum(dtype=torch.float32)) < math.inf


def _plant(place: Place, number: int) -> None:
    """One newborn graft over all seeds of a place, at full alpha."""
    blueprint, settings = "bottleneck_mlp", {"hidden": 1, "reads": "input" if place.ports.inputs else "chunk"}
    if any(piece.role not in ("beside", "copy") for piece in place.site.pieces):
        blueprint, settings = "widen", {"percent": 1}
    for target in (State.GERMINATED, State.TRAINING, State.GRAFTING):
        command = Command(place.layer_id, "all", target, blueprint=blueprint, settings=settings)
        transition(place, command, birth=Birth(number, ramp_steps=1))
    place.state.alpha.fill_(1.0)


def _ends(model: nn.Module) -> Iterator[tuple[str, nn.Module, Place]]:
    """Every place with the module whose output it writes."""
    for module in model.modules():
        if isinstance(module, KasminaLayer):
            for place in (*module._esper, *(colony for colony, _ in module._esper.limbs)):
                yield place.layer_id, module, place


def _called(name: str) -> str:
    return repr(name) if name else "The whole model"
