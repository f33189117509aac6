"""One hidden layer of convolutions beside the host."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.blueprints.convolution import check_odd, convolve
from esper.contracts.reports import POSITION_AXES, Layout


@dataclass(frozen=True)
class ConvBottleneck(Blueprint):
    """``delta(x) = W2 gelu(W1 * x + b1) + b2``: a convolution, then a 1x1 with ``W2 = b2 = 0`` at birth.

    Args:
        hidden: channels of the hidden layer.
        kernel: length of the convolution along every axis of positions, odd.
    """

    id: ClassVar[str] = "conv_bottleneck"
    family: ClassVar[str] = "conv_bottleneck"
    layouts: ClassVar[frozenset[Layout]] = frozenset({"signal", "image"})
    size: ClassVar[str | None] = "hidden"
    confidence: ClassVar[int] = 2
    rate: ClassVar[float] = 0.5

    hidden: int = 16
    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_odd(self.id, self.kernel)

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {
            "w1": (self.hidden, ports.inputs, *[self.kernel] * POSITION_AXES[ports.layout]),
            "b1": (self.hidden,),
            "w2": (ports.outputs, self.hidden),
            "b2": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1", "b1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = F.gelu(convolve(x, params["w1"], params["b1"], padding=self.kernel // 2))
        return F.linear(hidden, params["w2"], params["b2"])
