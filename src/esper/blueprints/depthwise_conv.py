"""Convolutions of every channel by itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.blueprints.convolution import check_odd, convolve
from esper.contracts.reports import POSITION_AXES, Layout


@dataclass(frozen=True)
class DepthwiseConv(Blueprint):
    """``delta(x)_c = sum_m s_cm gelu(W_cm * x_c + b_cm) + shift_c`` with ``s = shift = 0`` at birth.

    Each channel has a hidden layer of its own over its neighbourhood, and sees no other channel. (A depthwise kernel
    alone would be linear, which the host's own convolution can learn.)

    Args:
        kernels: hidden units of each channel.
        kernel: length of the convolution along every axis of positions, odd.
    """

    id: ClassVar[str] = "depthwise_conv"
    family: ClassVar[str] = "depthwise_conv"
    layouts: ClassVar[frozenset[Layout]] = frozenset({"signal", "image"})
    size: ClassVar[str | None] = "kernels"
    keeps_width: ClassVar[bool] = True
    confidence: ClassVar[int] = 1

    reads: Literal["input", "chunk"] = "chunk"
    kernels: int = 2
    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_odd(self.id, self.kernel)

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        hidden = ports.outputs * self.kernels
        return {
            "weight": (hidden, 1, *[self.kernel] * POSITION_AXES[ports.layout]),
            "bias": (hidden,),
            "scale": (hidden,),
            "shift": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "weight", "bias")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        channels = params["shift"].shape[0]
        hidden = F.gelu(convolve(x, params["weight"], params["bias"], padding=self.kernel // 2, groups=channels))
        return (hidden * params["scale"]).unflatten(-1, (channels, self.kernels)).sum(-1) + params["shift"]
