"""Counts FLOPs, once per batch shape and structure."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from esper.kasmina.flops import flop_counter


def shapes_of(batch: Any) -> tuple[object, ...]:
    """Shapes and dtypes of all tensors in a batch; of other values their type."""
    leaves = tree_leaves(batch)
    return tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


def count(work: Callable[[], object]) -> int:
    """FLOPs of ``work()``, which is done for real."""
    with flop_counter() as counter:
        work()
    flops: int = counter.get_total_flops()
    return flops


class FlopMeter:
    """Remembers what a kind of work costs; the first time, it is done once to be counted.

    It is done apart from the real work, eagerly: a compiled model cannot be counted, and once called under the counter
    torch would never compile it again.
    """

    def __init__(self) -> None:
        self._known: dict[object, int] = {}

    def cost(self, key: object, work: Callable[[], object]) -> int:
        """FLOPs of ``work()``, whose effects are the caller's to undo; calls with equal keys must do equal work."""
        if key not in self._known:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
                with torch.compiler.set_stance("force_eager"), flop_counter() as counter:
                    work()
            self._known[key] = counter.get_total_flops()
        return self._known[key]
