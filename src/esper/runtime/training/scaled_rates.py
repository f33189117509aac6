"""Learning rates that hold for one step: multiplied just before the optimizer steps, and restored after it, so that
schedulers see their own rates only."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class ScaledRates:
    """Multiplies and restores the learning rates of an optimizer."""

    def __init__(self) -> None:
        self._unscaled: list[Any] = []

    def scale(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply the learning rates of all groups."""
        self._unscaled = []
        if factor == 1.0:
            return
        for group in optimizer.param_groups:
            lr = group["lr"]
            self._unscaled.append(lr.clone() if isinstance(lr, Tensor) else lr)
            if isinstance(lr, Tensor):  # in place: a captured graph reads this very tensor
                lr.mul_(factor)
            else:
                group["lr"] = lr * factor

    def restore(self, optimizer: Optimizer, *_: Any) -> None:
        """Undo :meth:`scale`, after the step."""
        for group, lr in zip(optimizer.param_groups, self._unscaled, strict=False):
            if isinstance(lr, Tensor):
                group["lr"].copy_(lr)
            else:
                group["lr"] = lr
        self._unscaled = []
