"""Lifts the host's learning rate while a graft trains that was born when the rate had decayed.

A graft that is born late trains at the schedule's peak, beside a host that hardly moves any more. With re-warming the
host learns along with it.
"""

import torch
from torch import Tensor, nn

from esper.contracts.lifecycle import TRAINABLE
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.place import Place

BIRTHS = "births"
"""Buffer of a place: int64 ``[grafts, 2]``, number of a lifecycle and whether it was born late. What is decided at a
graft's birth must go where its bytes go: into arms, captures and checkpoints."""


class Rewarming:
    """Knows which grafts were born late, and by how much learning rates are to be lifted.

    Args:
        model: the wrapped model.
        share: of the peak, to which the rate is lifted.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._share = share
        self._places = list(places(model))
        for place in self._places:
            place.register_buffer(BIRTHS, torch.zeros(0, 2, dtype=torch.int64, device="cpu"), persistent=False)
        self._states: dict[str, tuple[Tensor, int, list[int]]] = {}

    def note_births(self, *, is_late: bool) -> None:
        """Remember of every graft that is new whether the rate has decayed now."""
        for place in self._places:
            if not place.arena.grafts:
                continue
            born = place.get_buffer(BIRTHS)
            known = set(born[:, 0].tolist())  # on the CPU: nobody waits for it
            if fresh := [[number, int(is_late)] for number in place.arena.grafts if number not in known]:
                setattr(place, BIRTHS, torch.cat([born, torch.tensor(fresh, device=born.device)]))

    def factor(self, lr: float, peak_lr: float, decay: float) -> float:
        """What a learning rate is multiplied by now; 1 where no graft that was born late trains.

        Args:
            lr: the rate that the factor is for.
            peak_lr: the schedule's peak.
            decay: where the grafts' decay stands, from 1 down to 0.
        """
        if lr <= 0 or not any(self._is_training_late_one(place) for place in self._places):
            return 1.0
        return max(1.0, self._share * peak_lr * decay / lr)

    def _is_training_late_one(self, place: Place) -> bool:
        live = place.arena.live
        if not live:
            return False
        late = {number for number, is_late in place.get_buffer(BIRTHS).tolist() if is_late}
        seeds = [graft.seeds[0] for graft in live if graft.lifecycle in late]
        return bool(seeds) and any(self._states_of(place)[seed] in TRAINABLE for seed in seeds)

    def _states_of(self, place: Place) -> list[int]:
        """States of a place's seeds. Waits for the device, but only in the first step after one has changed."""
        column = place.state.lifecycle
        tensor, version, states = self._states.get(place.layer_id, (None, -1, []))
        if tensor is not column or version != column._version:
            states = column.tolist()
            self._states[place.layer_id] = (column, column._version, states)
        return states
