"""Counts training FLOPs: what torch's FlopCounterMode counts, measured once per batch shape and structure."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def shapes_of(batch: Any) -> tuple[object, ...]:
    """Shapes and dtypes of all tensors in a batch; other values count as themselves if they are plain."""
    leaves = tree_leaves(batch)
    return tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


class FlopMeter:
    """Runs functions and tells what they cost. Only the first call with a key is counted; the rest is looked up."""

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def run(self, key: object, work: Callable[[], T]) -> tuple[T, int]:
        """Result and FLOPs of ``work()``; calls with equal keys must do equal work."""
        if key in self._known:
            return work(), self._known[key]
        with FlopCounterMode(display=False) as counter:
            result = work()
        self._known[key] = counter.get_total_flops()
        return result, self._known[key]

    def known(self, key: object) -> int | None:
        """FLOPs of work that was counted before, else None."""
        return self._known.get(key)
