"""One hidden layer that looks at the last few tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.blueprints.convolution import convolve
from esper.contracts.reports import Layout


@dataclass(frozen=True)
class SlidingConv(Blueprint):
    """``delta(x)_t = W2 gelu(W1 [x_(t-kernel+1) .. x_t] + b1) + b2`` with ``W2 = b2 = 0`` at birth.

    Causal: it never looks ahead (van den Oord et al., "WaveNet", 2016, section 2.1); before the first token are zeros.

    Args:
        hidden: width of the hidden layer.
        kernel: tokens that it sees, its own among them.
    """

    id: ClassVar[str] = "sliding_conv"
    family: ClassVar[str] = "sliding_conv"
    layouts: ClassVar[frozenset[Layout]] = frozenset({"tokens"})
    size: ClassVar[str | None] = "hidden"
    confidence: ClassVar[int] = 2
    rate: ClassVar[float] = 0.5

    hidden: int = 16
    kernel: int = 4

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {
            "w1": (self.hidden, ports.inputs, self.kernel),
            "b1": (self.hidden,),
            "w2": (ports.outputs, self.hidden),
            "b2": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1", "b1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        past = F.pad(x, (0, 0, self.kernel - 1, 0))
        hidden = F.gelu(convolve(past, params["w1"], params["b1"], padding=0))
        return F.linear(hidden, params["w2"], params["b2"])
