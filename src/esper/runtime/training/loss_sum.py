"""Losses that are added up."""

from dataclasses import dataclass

import torch
from torch import Tensor


def summable(loss: Tensor | float) -> Tensor | float:
    """A loss in float32 at least: a sum in bfloat16 stops growing at 256 times its summands."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32)) if isinstance(loss, Tensor) else loss


@dataclass
class LossSum:
    """Sum of the losses since the last boundary.

    Attributes:
        total: on the device of the losses.
        count: how many they are.
    """

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, loss: Tensor | float) -> None:
        """One more; nothing is read from the device."""
        self.total, self.count = self.total + summable(loss), self.count + 1

    def take_mean(self) -> float:
        """Their mean, 0 of none, to begin anew; reads from the device."""
        mean = float(self.total) / max(1, self.count)
        self.total, self.count = 0.0, 0
        return mean
