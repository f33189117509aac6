"""What layers of the host compute of new channels, by the kind of layer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.contracts.reports import Piece
from esper.kasmina.channels.library_layers import eps_of

CHANNELS_FIRST = ("conv", "depthwise", "batch_norm", "group_norm")
"""Layers whose channels are on axis 1; those of others come last."""

Params = Mapping[str, Tensor]


def widened(
    piece: Piece, module: nn.Module, params: Params, x: Tensor, came: Tensor | None, statistics: nn.Module | None
) -> tuple[Tensor | None, Tensor | None]:
    """What the host's channels get of new ones, and what new channels the layer writes.

    Args:
        piece: how the layer is widened.
        module: the layer.
        params: its part of the graft.
        x: what it reads of the host's channels.
        came: what new channels it reads; None if they got lost on the way.
        statistics: of new channels, for a batch norm.
    """
    if piece.role in _NORMS:
        return None, None if came is None else _NORMS[piece.role](module, params, came, statistics)
    apply = _MATRICES[piece.role]
    added = new = None
    if "old" in params and came is not None:
        added = apply(module, came, params["old"], None)
    if "new" in params:
        new = apply(module, x, params["new"], params.get("bias"))
        if "both" in params and came is not None:
            new = new + apply(module, came, params["both"], None)
    return added, new


def _linear(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _convolution(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = module._conv_forward(x, weight, bias)
    return y


def _embedding(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.embedding(x, weight, module.padding_idx)


def _depthwise(module: Any, params: Params, x: Tensor, statistics: nn.Module | None) -> Tensor:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(module.kernel_size) - 1]
    rest = module.stride, module.padding, module.dilation, x.shape[1]
    y: Tensor = convolve(x, params["weight"], params.get("bias"), *rest)
    return y


def _batch_norm(module: Any, params: Params, x: Tensor, statistics: Any) -> Tensor:
    statistics.eps, statistics.momentum = module.eps, module.momentum
    statistics.training = module.training or module.running_mean is None  # of the batch where the host keeps none
    y: Tensor = statistics(x)
    shape = (1, -1, *[1] * (x.dim() - 2))
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        y = combine(y, params[name].view(shape)) if name in params else y
    return y


def _layer_norm(module: Any, params: Params, x: Tensor, statistics: nn.Module | None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], params.get("weight"), params.get("bias"), eps_of(module))


def _rms_norm(module: Any, params: Params, x: Tensor, statistics: nn.Module | None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], params.get("weight"), eps_of(module))


def _group_norm(module: Any, params: Params, x: Tensor, statistics: nn.Module | None) -> Tensor:
    groups = new_groups(module.num_channels, module.num_groups, x.shape[1])
    return F.group_norm(x, groups, params.get("weight"), params.get("bias"), module.eps)


def new_groups(channels: int, groups: int, new: int) -> int:
    """Groups of new channels behind a group norm: as large as the host's where that divides them, else one."""
    size = channels // groups
    return new // size if new % size == 0 else 1


_MATRICES: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "conv": _convolution,
    "embedding": _embedding,
}
_NORMS: dict[str, Callable[..., Tensor]] = {
    "depthwise": _depthwise,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
}
