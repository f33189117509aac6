"""One hidden layer beside the host: the family that pays most (nonlinear, zero output layer)."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class BottleneckMLP(Blueprint):
    """``delta(x) = W2 gelu(W1 x + b1) + b2`` with ``W2 = b2 = 0`` at birth.

    The first layer draws from U(-1/sqrt(inputs), 1/sqrt(inputs)), as ``nn.Linear`` does. With a zero last factor the
    branch is the exact identity at birth, yet ``W2`` and ``b2`` receive gradient in the first step and ``W1`` and
    ``b1`` from the second on (the zero-initialised residual branch of Zhang et al., "Fixup", ICLR 2019, section 3).

    Args:
        hidden: width of the hidden layer.
    """

    id: ClassVar[str] = "bottleneck_mlp"
    family: ClassVar[str] = "bottleneck_mlp"
    size: ClassVar[str | None] = "hidden"
    confidence: ClassVar[int] = 3

    hidden: int = 16

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {
            "w1": (self.hidden, ports.inputs),
            "b1": (self.hidden,),
            "w2": (ports.outputs, self.hidden),
            "b2": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1", "b1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, params["w1"], params["b1"]))
        return F.linear(hidden, params["w2"], params["b2"])
