"""A linear map of low rank beside the host."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class LowRank(Blueprint):
    """``delta(x) = B A x`` with ``B = 0`` at birth (Hu et al., "LoRA", ICLR 2022, section 4.1).

    It is linear: across a block it is a shortcut that the block does not have, beside one layer it adds nothing that
    the layer's weight could not learn.

    Args:
        rank: of the map.
    """

    id: ClassVar[str] = "low_rank"
    family: ClassVar[str] = "low_rank"
    size: ClassVar[str | None] = "rank"
    confidence: ClassVar[int] = 1

    rank: int = 8

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {"w1": (self.rank, ports.inputs), "w2": (ports.outputs, self.rank)}

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator, "w1")

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.linear(F.linear(x, params["w1"]), params["w2"])
