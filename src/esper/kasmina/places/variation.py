"""How much of what a graft adds depends on its input.

A graft can beat the twin by what a bias would have done: with a hidden layer in front of it an offset is learned faster
than the host's own biases learn theirs. That lead is real while it lasts, and no reason to keep a module.

Legend: G grafts of a group, K channels that a graft writes, B... leading axes of activations.
"""

import math
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from esper.kasmina.places.place import Place


class Variation:
    """Watches what one live graft adds in the forward passes inside; those are neither compiled nor replayed.

    Args:
        place: where the graft is.
        lifecycle: which it is.
    """

    def __init__(self, place: Place, lifecycle: int) -> None:
        self.lifecycle = lifecycle
        self._group, self._index = place.arena.live_group(lifecycle)
        self._called = place.arena.activities[0].called
        self._moments: dict[int, tuple[int, Tensor, Tensor]] = {}  # of every piece: rows, sum, sum of squares
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        self._inside.enter_context(torch.compiler.set_stance("force_eager"))
        self._group.watchers.append(self._take_in)
        self._inside.callback(self._group.watchers.remove, self._take_in)
        self._called.watched += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._called.watched -= 1
        self._inside.close()

    @property
    def share(self) -> float | None:
        """Share of the mean square that is variance, both summed over channels: 0 for an offset, at most 1.

        None where nothing was added, or nothing finite. Reads from the device.
        """
        power = mean = 0.0
        for rows, sum_K, squares in self._moments.values():
            power += float(squares) / max(1, rows)
            mean += float((sum_K / max(1, rows)).square().sum())
        if not (power > 0 and math.isfinite(power)):
            return None
        return max(0.0, 1 - mean / power)

    def _take_in(self, delta_GBK: Tensor, piece: int) -> None:
        delta_RK = delta_GBK[self._index].detach().float()
        delta_RK = (delta_RK.movedim(1, -1) if self._group.is_channels_first(piece) else delta_RK).flatten(0, -2)
        rows, sum_K, squares = self._moments.get(piece, (0, delta_RK.new_zeros(()), delta_RK.new_zeros(())))
        rows += delta_RK.shape[0]
        self._moments[piece] = rows, sum_K + delta_RK.sum(0), squares + delta_RK.square().sum()
