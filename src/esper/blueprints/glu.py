"""A hidden layer that gates itself, as in the feed-forward blocks of current transformers."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class GLU(Blueprint):
    """``delta(x) = W2 (silu(Wg x + bg) * (Wv x + bv)) + b2`` with ``W2 = b2 = 0`` at birth.

    SwiGLU of Shazeer, "GLU Variants Improve Transformer", 2020, eq. 6, with biases; ``w1`` and ``b1`` hold gate and
    value one after the other.

    Args:
        hidden: width of the hidden layer.
    """

    id: ClassVar[str] = "glu"
    family: ClassVar[str] = "glu"
    size: ClassVar[str | None] = "hidden"
    confidence: ClassVar[int] = 2

    hidden: int = 16

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {
            "w1": (2 * self.hidden, ports.inputs),
            "b1": (2 * self.hidden,),
            "w2": (ports.outputs, self.hidden),
            "b2": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1", "b1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        gate, value = F.linear(x, params["w1"], params["b1"]).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * value, params["w2"], params["b2"])
