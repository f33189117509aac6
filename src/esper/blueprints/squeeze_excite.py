"""Gates on the channels that look at the whole sample."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn
from esper.contracts.reports import Layout


@dataclass(frozen=True)
class SqueezeExcite(Blueprint):
    """``delta(x) = x * tanh(W2 silu(W1 mean(x) + b1) + b2)``, the mean over positions, ``W2 = b2 = 0`` at birth.

    Squeeze and excitation of Hu et al., CVPR 2018, section 3, as a residual: the host's channels are multiplied by a
    gate in (0, 2) that starts at 1. (``tanh(z)`` is ``2 sigmoid(2 z) - 1`` without the cancellation, which in bfloat16
    would leave steps of 1/128.) SiLU for ReLU as in EfficientNet: a ReLU unit that is dead for all samples at birth
    would never move. Not over tokens, where a mean over positions shows a causal model its future.

    Args:
        hidden: width of the hidden layer.
    """

    id: ClassVar[str] = "squeeze_excite"
    family: ClassVar[str] = "squeeze_excite"
    layouts: ClassVar[frozenset[Layout]] = frozenset({"signal", "image"})
    size: ClassVar[str | None] = "hidden"
    keeps_width: ClassVar[bool] = True
    confidence: ClassVar[int] = 1

    reads: Literal["input", "chunk"] = "chunk"
    hidden: int = 8

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
        x_BPC = x.flatten(1, -2)
        hidden = F.silu(F.linear(x_BPC.mean(1, keepdim=True), params["w1"], params["b1"]))
        gate = torch.tanh(F.linear(hidden, params["w2"], params["b2"]))
        return (x_BPC * gate).reshape_as(x)

    def multiply_adds(self, ports: Ports) -> int:
        """Its parameters once per sample, shared by the sample's positions, rounded up."""
        return -(-self.num_parameters(ports) // ports.positions)
