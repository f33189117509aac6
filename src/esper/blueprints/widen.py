"""New channels in the host's own layers: what makes a network wider, as a colony."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor

from esper.blueprints.blueprint import Ports, Recipe
from esper.contracts.reports import Piece

MATRICES = ("linear", "conv")
EMBEDDING_STD = 0.02
MOST = 150


@dataclass(frozen=True)
class Widen(Recipe):
    """Every class of channels that the colony meets gets some more: new ones read all that the host's read, and what
    the host's channels read of them is zero at birth, so that the host computes exactly what it did.

    What new channels read is drawn from U(-1/sqrt(n), 1/sqrt(n)) with n the fan-in, as ``nn.Linear`` does; a norm keeps
    statistics of new channels apart from those of the host's. The zero-initialised outgoing weights are those of
    Evci et al., "GradMax: growing neural networks using gradient information", ICLR 2022, without its choice of the
    others.

    A layer may have up to four parameters: ``old``, what the host's channels read of new ones
    ``[outputs, k, *kernel]``; ``new``, what new channels read of the host's ``[m, inputs, *kernel]``; ``both``, what
    they read of new ones ``[m, k, *kernel]``; and ``bias`` ``[m]``. A norm has ``weight`` and ``bias``.

    Args:
        percent: new channels, of the width of their class; at least one channel in each.
    """

    id: ClassVar[str] = "widen"
    family: ClassVar[str] = "widen"
    size: ClassVar[str | None] = "percent"
    confidence: ClassVar[int] = 3

    rate: ClassVar[float] = 2 / 3

    percent: int = 50

    def rate_at(self, ports: Ports) -> float:
        """With the usual factor for grafts, the host's own rate; half of it in convolutions."""
        has_convolutions = any(piece.role in ("conv", "depthwise") for piece in self.parts(ports))
        return self.rate / 2 if has_convolutions else self.rate

    def sized(self, ports: Ports, multiply_adds: float = math.inf, parameters: float = math.inf) -> Self | None:
        """As of any recipe, up to ``MOST`` percent: more at once only takes longer to learn."""
        largest = super().sized(ports, multiply_adds, parameters)
        return None if largest is None else replace(largest, percent=min(MOST, largest.percent))

    def channels(self, width: int) -> int:
        """New channels of a class."""
        return max(1, round(width * self.percent / 100)) if width else 0

    def shapes(self, ports: Piece) -> dict[str, tuple[int, ...]]:
        read, written = self.channels(ports.reads), self.channels(ports.writes)
        if ports.role in MATRICES:
            read *= ports.inputs // ports.reads if ports.reads else 0
            found = {"old": (ports.outputs, read, *ports.kernel), "new": (written, ports.inputs, *ports.kernel)}
            found |= {"both": (written, read, *ports.kernel)}
            found |= {"bias": (written,)} if ports.has_bias else {}
        elif ports.role == "embedding":
            found = {"new": (ports.inputs, written)}
        elif ports.role == "depthwise":
            found = {"weight": (written, 1, *ports.kernel)} | ({"bias": (written,)} if ports.has_bias else {})
        elif ports.role == "table":
            found = {}
        else:
            found = {"weight": (written,)} if ports.has_scale else {}
            found |= {"bias": (written,)} if ports.has_bias else {}
        return {name: shape for name, shape in found.items() if math.prod(shape)}

    def init(self, ports: Piece, generator: Generator) -> dict[str, Tensor]:
        params = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in self.shapes(ports).items()}
        if ports.role == "embedding":
            params["new"].normal_(std=EMBEDDING_STD, generator=generator)
        elif ports.role in MATRICES:
            read = self.channels(ports.reads) * (ports.inputs // ports.reads if ports.reads else 0)
            bound = 1 / math.sqrt((ports.inputs + read) * math.prod(ports.kernel))
            for name, tensor in params.items():
                if name != "old":
                    tensor.uniform_(-bound, bound, generator=generator)
        elif ports.role == "depthwise":
            bound = 1 / math.sqrt(math.prod(ports.kernel))
            for tensor in params.values():
                tensor.uniform_(-bound, bound, generator=generator)
        elif "weight" in params:
            params["weight"].fill_(1.0)
        return params

    def multiply_adds(self, ports: Any) -> int:
        """Of the matrix products and convolutions alone."""
        if ports.role not in (*MATRICES, "depthwise"):
            return 0
        return sum(math.prod(shape) for name, shape in self.shapes(ports).items() if name != "bias")

    def meets(self, piece: Piece) -> bool:
        return piece.role not in ("beside", "copy")

    def misfit(self, ports: Ports) -> str | None:
        if ports.pieces is None:
            return "it widens all layers that share channels, and this is a single place: take a colony, such as '*'"
        return None if ports.pieces else "here are only blocks to grow beside: take 'bottleneck_mlp', or another colony"

    def parts(self, ports: Ports) -> tuple[Piece, ...]:
        assert ports.pieces is not None
        return ports.pieces
