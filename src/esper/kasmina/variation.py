"""How much of what a graft adds depends on its input.

A graft can beat the twin by what a bias would have done: with a hidden layer in front of it an offset is learned faster
than the host's own biases learn theirs. That lead is real while it lasts, and no reason to keep a module.

Legend: G grafts of a group, K channels that a graft writes, B... leading axes of activations.
"""

from types import TracebackType

import torch
from torch import Tensor

from esper.kasmina.place import Place


class Variation:
    """Watches what one live graft adds in the forward passes inside; those are not compiled.

    Args:
        place: where the graft is.
        lifecycle: which it is.
    """

    def __init__(self, place: Place, lifecycle: int) -> None:
        self.lifecycle = lifecycle
        self._group, self._index = place.arena.live_group(lifecycle)
        self._rows = 0
        self._sum_K: Tensor | float = 0.0
        self._power: Tensor | float = 0.0
        self._eager = torch.compiler.set_stance("force_eager")

    def __enter__(self) -> "Variation":
        self._eager.__enter__()
        self._group.watchers.append(self._take_in)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._group.watchers.remove(self._take_in)
        self._eager.__exit__(kind, error, at)

    @property
    def share(self) -> float | None:
        """Share of the mean square that is variance, both summed over channels: 0 for an offset, at most 1.

        None where nothing was added, or nothing finite. Reads from the device.
        """
        if not self._rows or not isinstance(self._sum_K, Tensor):
            return None
        power, offset = float(self._power) / self._rows, float((self._sum_K / self._rows).square().sum())
        share = 1 - offset / power if power > 0 else float("nan")
        return max(0.0, share) if share == share else None

    def _take_in(self, delta_GBK: Tensor) -> None:
        delta_RK = delta_GBK[self._index].detach().float().flatten(0, -2)
        self._rows += delta_RK.shape[0]
        self._sum_K = self._sum_K + delta_RK.sum(0)
        self._power = self._power + delta_RK.square().sum()
