"""Going to a state of the run and back, and taking over what another body has learned."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from esper.checkpoint.tree import clone
from esper.kasmina.places.place import Place
from esper.runtime.state.snapshot import Kept, Snapshots
from esper.runtime.training.trainer import Trainer


class Captures:
    """Captures and restores body and clock of a run.

    Args:
        places: of the model, by name.
        snapshots: captures and restores the caller's objects.
        trainer: knows step and learning rates.
        restructured: called when something has changed what work costs.

    Attributes:
        restored: how often the run was put back where it was.
    """

    def __init__(
        self, places: Mapping[str, Place], snapshots: Snapshots, trainer: Trainer, restructured: Callable[[], None]
    ) -> None:
        self._places, self._snapshots, self._trainer = places, snapshots, trainer
        self._restructured = restructured
        self.restored = 0

    def capture(self) -> dict[str, Any]:
        """Body and clock of the run as it is."""
        return {"body": self._snapshots.body(), "clock": self._clock()}

    def keep(self) -> dict[str, Any]:
        """As :meth:`capture`, for later."""
        return {"body": self._snapshots.keep(), "clock": self._clock()}

    def restore(self, captured: dict[str, Any], *, is_spare: bool = False) -> None:
        """Inverse of :meth:`capture` and of :meth:`keep`.

        Args:
            captured: where to go back to.
            is_spare: whether it is needed no more, and may be used up.
        """
        self.restored += 1
        clock, body = captured["clock"], captured["body"]
        self._snapshots.restore_body(body if is_spare else self._snapshots.fetch(body))
        self._snapshots.restore_clock(clock)
        self._trainer.go_to(clock)
        self._restructured()

    def take_over(
        self, kept: Kept, seeds_of: tuple[int, ...] = (), *, is_rollback: bool = False, has_gradients: bool = True
    ) -> None:
        """Go on with what another body has learned, under the run's own clock.

        Learning rates, the states of seeds and the grafts that wait for their round stay as they are.

        Args:
            kept: body of an arm, or from before a graft.
            seeds_of: lifecycles whose seeds' state comes from there too.
            is_rollback: whether learning rates come from there too, and the versions of those seeds do not.
            has_gradients: whether those that were still accumulating there go on doing so.
        """
        columns = {layer_id: clone(place.state.state_dict()) for layer_id, place in self._places.items()}
        waiting = {
            layer_id: {number: graft for number, graft in place.arena.grafts.items() if graft.slot is None}
            for layer_id, place in self._places.items()
        }
        body = self._snapshots.fetch(kept)
        if not has_gradients:
            body["grads"] = {}
        for layer_id in self._places:  # what trains in isolation does so for the run, not for an arm
            self._snapshots.renew(body, layer_id, "incubation")
        if not is_rollback:
            rates = self._snapshots.optimizer_settings()
            body = body | {"optimizer": body["optimizer"] | {"param_groups": rates}}
        self._snapshots.restore_body(body)
        for layer_id, place in self._places.items():
            theirs = torch.isin(place.state.lifecycle_id, torch.tensor(seeds_of, device=place.state.alpha.device))
            for name, column in place.state.named_buffers():
                is_theirs = theirs & (name != "version") if is_rollback else theirs
                column.copy_(torch.where(is_theirs, column, columns[layer_id][name].to(column.device)))
            for number in seeds_of:
                place.incubation.discard(number)
            live = {graft.lifecycle: graft for graft in place.arena.live}
            place.arena.grafts = live | {n: graft for n, graft in waiting[layer_id].items() if n not in seeds_of}
        self._restructured()

    def _clock(self) -> dict[str, Any]:
        return self._snapshots.clock() | self._trainer.clock()
