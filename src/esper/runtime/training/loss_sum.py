"""Losses that are added up."""

import torch
from torch import Tensor


def summable(loss: Tensor | float) -> Tensor | float:
    """A loss in float32 at least: a sum in bfloat16 stops growing at 256 times its summands."""
    return loss.to(torch.promote_types(loss.dtype, torch.float32)) if isinstance(loss, Tensor) else loss
