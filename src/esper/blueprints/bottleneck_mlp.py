"""One hidden layer beside the host: the family that pays most (nonlinear, zero output layer)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from esper.blueprints.blueprint import Blueprint, Ports
from esper.contracts.errors import ConfigError


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

    hidden: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, int) or self.hidden < 1:
            raise ConfigError(f"{self.id}: hidden must be a whole number of at least 1, not {self.hidden!r}.")
        if self.reads not in ("input", "chunk"):
            raise ConfigError(f"{self.id}: reads must be 'input' or 'chunk', not {self.reads!r}.")

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {
            "w1": (self.hidden, ports.inputs),
            "b1": (self.hidden,),
            "w2": (ports.outputs, self.hidden),
            "b2": (ports.outputs,),
        }

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        params = {name: torch.zeros(shape) for name, shape in self.shapes(ports).items()}
        bound = 1 / math.sqrt(ports.inputs)
        for name in ("w1", "b1"):
            params[name].uniform_(-bound, bound, generator=generator)
        return params

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(x, params["w1"], params["b1"]))
        return F.linear(hidden, params["w2"], params["b2"])

    def to_module(self, ports: Ports, params: dict[str, Tensor]) -> nn.Module:
        first, last = nn.Linear(ports.inputs, self.hidden), nn.Linear(self.hidden, ports.outputs)
        tensors = {"0.weight": "w1", "0.bias": "b1", "2.weight": "w2", "2.bias": "b2"}
        branch = nn.Sequential(first, nn.GELU(), last).to(params["w1"])
        branch.load_state_dict({key: params[name] for key, name in tensors.items()})
        return branch
