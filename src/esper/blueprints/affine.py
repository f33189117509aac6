"""A scale and a shift of every channel: the cheapest repair."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class Affine(Blueprint):
    """``delta(x) = s * x + b`` per channel with ``s = b = 0`` at birth (Perez et al., "FiLM", AAAI 2018, as residual).

    It is linear, so that the host's own layer can mostly learn the same.
    """

    id: ClassVar[str] = "affine"
    family: ClassVar[str] = "affine"
    keeps_width: ClassVar[bool] = True
    confidence: ClassVar[int] = 1

    reads: Literal["input", "chunk"] = "chunk"

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {"scale": (ports.outputs,), "shift": (ports.outputs,)}

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator)

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return x * params["scale"] + params["shift"]
