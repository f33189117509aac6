"""A copy of every block behind it: what makes a chain of blocks longer, as a colony."""

from dataclasses import dataclass, replace
from math import inf
from typing import ClassVar, Self

import torch
from torch import Generator, Tensor, nn

from esper.blueprints.blueprint import Ports, Recipe
from esper.contracts.reports import BlockCopy, Piece
from esper.shards import whole


@dataclass(frozen=True)
class Deepen(Recipe):
    """Each block is followed by a copy of itself, whose outputs into the stream are zero at birth, so that it gives
    what it reads: ``delta(y) = copy(y) - y``.

    All else of a copy has the block's values at the time. Which parameters are zero was found on the block itself
    (:mod:`esper.kasmina.host.depth`). Copies with zero outputs are those of Wu et al., "LLaMA Pro: progressive LLaMA
    with block expansion", ACL 2024.

    Args:
        every: 1 for a copy behind each block, 2 behind each second one, and so on.
    """

    id: ClassVar[str] = "deepen"
    family: ClassVar[str] = "deepen"
    confidence: ClassVar[int] = 3

    every: int = 1

    def meets(self, piece: Piece) -> bool:
        return piece.role == "copy"

    def pieces(self, ports: Ports) -> tuple[Piece, ...]:
        return (ports.pieces or ())[self.every - 1 :: self.every]

    def parts(self, ports: Ports) -> tuple[Piece, ...]:
        return self.pieces(ports)

    def misfit(self, ports: Ports) -> str | None:
        if not ports.pieces:
            return "it copies several blocks, each of which gives what it reads once its outputs are zero"
        if not self.pieces(ports):
            return f"there are {len(ports.pieces)} blocks, and none is number {self.every}: take a smaller 'every'"
        return None

    def shapes(self, ports: Piece) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in _copy(ports).shapes}

    def init(self, ports: Piece, generator: Generator) -> dict[str, Tensor]:
        """Zeros; :meth:`inherited` has the rest."""
        return {name: torch.zeros(shape, dtype=torch.float32) for name, shape in self.shapes(ports).items()}

    def inherited(self, ports: Piece, host: nn.Module) -> dict[str, Tensor]:
        names = self.shapes(ports).keys() - set(_copy(ports).zeroed)
        return {name: whole(host.get_parameter(name).detach()).to("cpu", torch.float32) for name in sorted(names)}

    def multiply_adds(self, ports: Piece) -> int:
        return _copy(ports).multiply_adds

    def sized(self, ports: Ports, multiply_adds: float = inf, parameters: float = inf) -> Self | None:
        """With as many copies as a budget allows: ``every`` is doubled until they fit."""
        version = self
        while version.pieces(ports):
            if version.work_of(ports) <= multiply_adds and version.parameters_of(ports) <= parameters:
                return version
            version = replace(version, every=2 * version.every)
        return None


def _copy(piece: Piece) -> BlockCopy:
    assert piece.copy is not None
    return piece.copy
