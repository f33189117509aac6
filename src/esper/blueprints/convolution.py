"""Convolution over activations whose channels are last."""

import torch.nn.functional as F
from torch import Tensor

from esper.contracts.errors import ConfigError


def convolve(x: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int = 1) -> Tensor:
    """``x [batch, positions..., inputs]`` to ``[batch, positions..., outputs]``.

    Args:
        x: activations with one or two axes of positions.
        weight: ``[outputs, inputs / groups, kernel...]``, as long along all axes.
        bias: ``[outputs]``.
        padding: zeros before and after the positions of every axis.
        groups: of channels that do not see each other.
    """
    convolution = F.conv1d if weight.dim() == 3 else F.conv2d
    weight, bias = weight.to(x), bias.to(x)  # autocast does not reach a convolution under vmap (torch 2.13)
    return convolution(x.movedim(-1, 1), weight, bias, padding=padding, groups=groups).movedim(1, -1)


def check_odd(blueprint_id: str, kernel: int) -> None:
    """Raises ConfigError if a kernel has no middle."""
    if kernel % 2 == 0:
        raise ConfigError(f"{blueprint_id}: kernel must be odd, so that it has a middle, not {kernel}.")
