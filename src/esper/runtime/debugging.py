"""Debug mode: every decision with its inputs, and all that must hold of seeds and grafts, checked at every step."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, InvariantError
from esper.contracts.lifecycle import LIVE, State
from esper.contracts.reports import Observation
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.before_update import before_update
from esper.kasmina.places.invariants import frozen_bytes, same_bytes, violations
from esper.kasmina.places.place import Place
from esper.runtime.commands.seeds import Situation
from esper.runtime.judging.gates import GateResult, Measured
from esper.runtime.record.books import Lifecycle
from esper.runtime.record.journal import plain
from esper.runtime.state.captures import Captures
from esper.runtime.training.trainer import Trainer
from esper.tamiyo.explaining import explain
from esper.tamiyo.heuristic import HeuristicPolicy

FILE = "debug.jsonl"

VARIABLE = "ESPER_DEBUG"

_TOLD = 5
"""So many of the things that do not hold are told in the error."""


class Watched(Situation, Protocol):
    """A run, as far as this looks at it."""

    @property
    def captures(self) -> Captures: ...
    @property
    def trainer(self) -> Trainer: ...


class Debug:
    """Looks at places before and after every step of the optimizer, and writes down what is decided.

    It is built before whatever else hooks the optimizer, so that its look comes before grafts are stepped.

    Args:
        places: of the model, by name.
        parts: the optimizers that really step.
    """

    def __init__(self, places: Mapping[str, Place], parts: Sequence[Optimizer]) -> None:
        self._places, self._parts = places, parts
        self._run: Watched | None = None
        self._file: Path | None = None
        self._frozen: dict[str, list[Tensor]] = {}
        self._versions: dict[str, list[int]] = {}
        self._restored = 0
        self._handles = [before_update(part, self._before_step) for part in parts]
        self._handles += [part.register_step_post_hook(self._after_step) for part in parts]

    def follow(self, run: Watched, directory: Path | None, *, is_new: bool) -> None:
        """Look at this run from now on, and write to a directory; None writes nothing.

        Args:
            run: that is looked at.
            directory: takes the file, which begins anew where the run does.
            is_new: whether it does.
        """
        self._run = run
        self._file = None if directory is None else directory / FILE
        if self._file is not None and is_new:
            self._file.write_text("")

    def detach(self) -> None:
        """Look at no further step."""
        for handle in self._handles:
            handle.remove()

    def decided(
        self, policy: object, config: GrowthConfig, seen: Observation, answers: Sequence[tuple[Command, Answer]]
    ) -> None:
        """Write down a decision: what the controller saw, what it went by, what it asked for, what became of that."""
        explained = explain(seen, config) if isinstance(policy, HeuristicPolicy) else None
        self._write(
            "decision",
            policy=type(policy).__name__,
            explained=explained,
            commands=[asdict(command) | {"target": command.target.name} for command, _ in answers],
            answers=[asdict(answer) for _, answer in answers],
            observation=asdict(seen),
        )

    def judged(self, one: Lifecycle | None, target: State, measured: Measured, result: GateResult) -> None:
        """Write down what a gate was shown, and what it said."""
        number = None if one is None else one.number
        self._write("gate", lifecycle=number, target=target.name, shown=dict(measured), said=str(result))

    def check(self) -> None:
        """Look at everything.

        Raises:
            InvariantError: if something does not hold.
        """
        for layer_id, place in self._places.items():
            self._refuse(layer_id, violations(place))
            self._refuse(layer_id, self._fallen(layer_id, place))
        for layer_id, found in self._unbooked():
            self._refuse(layer_id, [found])
        self._refuse("", self._held())

    def _before_step(self, optimizer: Optimizer) -> None:
        if self._run is None or self._run.trainer.is_replaced:
            return
        self.check()
        self._frozen = {layer_id: frozen_bytes(place) for layer_id, place in self._places.items()}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for layer_id, before in self._frozen.items():
            if not same_bytes(before, frozen_bytes(self._places[layer_id])):
                self._refuse(layer_id, ["the step of the optimizer has moved parameters that are frozen"])
        self._frozen = {}

    def _fallen(self, layer_id: str, place: Place) -> list[str]:
        """Versions that are lower than at the last look, where the run was not put back since."""
        assert self._run is not None
        if self._restored != self._run.captures.restored:
            self._restored, self._versions = self._run.captures.restored, {}
        now = [int(version) for version in place.state.version.tolist()]
        before, self._versions[layer_id] = self._versions.get(layer_id, now), now
        if len(before) != len(now):
            return []
        pairs = enumerate(zip(before, now, strict=True))
        return [f"seed {seed} went back from version {old} to {new}" for seed, (old, new) in pairs if new < old]

    def _unbooked(self) -> Iterator[tuple[str, str]]:
        """Lifecycles that the books tell otherwise. In an arm they may: the books are not put back."""
        assert self._run is not None
        if self._run.arm is not None:
            return
        for one in self._run.books.alive.values():
            place = self._places[one.layer_id]
            seed = 0 if one.seed_id == "all" else one.seed_id
            state, number = State(int(place.state.lifecycle[seed])), int(place.state.lifecycle_id[seed])
            if one.state in LIVE and (state is not one.state or number != one.number):
                yield (
                    one.layer_id,
                    f"seed {seed} is {state.name} in lifecycle {number}; the books have it {one.state.name} in "
                    f"lifecycle {one.number}",
                )

    def _held(self) -> list[str]:
        """Grafts that the caller's optimizer has moved: it must have nothing to remember of them."""
        arenas = {id(place.arena.slots): layer_id for layer_id, place in self._places.items()}
        held = [
            arenas[id(one)] for part in self._parts for one, state in part.state.items() if state and id(one) in arenas
        ]
        return [f"the optimizer has a state of its own for the grafts of {layer_id!r}" for layer_id in held]

    def _refuse(self, layer_id: str, found: Sequence[str]) -> None:
        if not found:
            return
        self._write("violation", layer_id=layer_id, found=list(found))
        assert self._run is not None
        where = f"step {self._run.step}" + ("" if self._run.arm is None else f", arm {self._run.arm}")
        said = "; ".join(found[:_TOLD]) + (f" and {len(found) - _TOLD} more" if len(found) > _TOLD else "")
        kept = "this message" if self._file is None else f"this message, {self._file} and the newest checkpoint"
        raise InvariantError(
            f"At {layer_id!r}, {where}: {said}. That cannot be: it is a bug of Esper, or something wrote "
            f"into the state of its seeds. Report it with {kept}."
        )

    def _write(self, kind: str, **fields: Any) -> None:
        if self._file is None or self._run is None:
            return
        line = {"kind": kind, "step": self._run.step, "epoch": self._run.epoch, "arm": self._run.arm, **fields}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(line)) + "\n")


def debugger_for(
    model: nn.Module, parts: Sequence[Optimizer], *, is_asked: bool | None, environment: Mapping[str, str] = os.environ
) -> Debug | None:
    """What looks at a model, if that is asked for.

    Args:
        model: wrapped.
        parts: the optimizers that really step.
        is_asked: whether it is; None looks into the environment.
        environment: of the process.

    Raises:
        ConfigError: if the environment says neither 0 nor 1.
    """
    value = environment.get(VARIABLE, "")
    if is_asked is None and value not in ("", "0", "1"):
        raise ConfigError(f"{VARIABLE} is {value!r}. Set it to 1 for debug mode, to 0 for none, or leave it out.")
    wanted = value == "1" if is_asked is None else is_asked
    return Debug({place.layer_id: place for place in places(model)}, parts) if wanted else None
