"""Nothing at all: what a lifecycle costs by itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class Noop(Blueprint):
    """``delta(x) = 0``, without parameters: it stays the identity, so no honest judge keeps it."""

    id: ClassVar[str] = "noop"
    family: ClassVar[str] = "noop"
    keeps_width: ClassVar[bool] = True

    reads: Literal["input", "chunk"] = "chunk"

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {}

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator)

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.zeros_like(x)
