"""A normalised view of the chunk, scaled and shifted."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports, drawn


@dataclass(frozen=True)
class NormAffine(Blueprint):
    """``delta(x) = scale * norm(x) + shift`` with ``scale = shift = 0`` at birth.

    ``norm`` is layer normalisation over the channels read, row by row (Ba et al., "Layer Normalization", 2016, eq. 4):
    nonlinear, and without statistics of the batch.
    """

    id: ClassVar[str] = "norm_affine"
    family: ClassVar[str] = "norm_affine"
    keeps_width: ClassVar[bool] = True
    confidence: ClassVar[int] = 1

    reads: Literal["input", "chunk"] = "chunk"

    def misfit(self, ports: Ports) -> str | None:
        only_one = "it normalises over channels, and a single channel minus its mean is always 0"
        return super().misfit(ports) or (only_one if ports.inputs == 1 else None)

    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        return {"scale": (ports.outputs,), "shift": (ports.outputs,)}

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        return drawn(self.shapes(ports), generator)

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.layer_norm(x, params["scale"].shape, params["scale"], params["shift"])
