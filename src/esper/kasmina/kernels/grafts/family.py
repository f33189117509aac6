"""The families of grafts that a kernel knows, and where a graft's parameters lie in its slot."""

from enum import IntEnum
from typing import NamedTuple, Self

from esper.blueprints.affine import Affine
from esper.blueprints.blueprint import Ports, Recipe
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.glu import GLU
from esper.blueprints.low_rank import LowRank

MOST_CHANNELS, MOST_HIDDEN = 128, 64
"""Of one graft. Larger ones are large products, which torch's own libraries do as well."""


class Family(IntEnum):
    """What a graft computes; its blueprint tells the formula."""

    AFFINE = 0
    LOW_RANK = 1
    MLP = 2
    GLU = 3


FAMILIES: dict[type[Recipe], Family] = {
    Affine: Family.AFFINE,
    LowRank: Family.LOW_RANK,
    BottleneckMLP: Family.MLP,
    GLU: Family.GLU,
}


class Shape(NamedTuple):
    """Of the grafts of a group, all alike.

    Args:
        family: what they compute.
        channels: that each of them writes.
        hidden: features between; 0 for an affine one.
        inputs: features that each reads of the place's input; 0 if it reads the channels that it writes.
    """

    family: Family
    channels: int
    hidden: int = 0
    inputs: int = 0

    @classmethod
    def of(cls, blueprint: Recipe, ports: Ports) -> Self | None:
        """That of grafts of a blueprint; None where no kernel knows it."""
        family = FAMILIES.get(type(blueprint))
        if family is None or (family is Family.AFFINE and not blueprint.reads_chunk):
            return None
        hidden = getattr(blueprint, "hidden", getattr(blueprint, "rank", 0))
        is_small = ports.outputs <= MOST_CHANNELS and hidden <= MOST_HIDDEN
        return cls(family, ports.outputs, hidden, 0 if blueprint.reads_chunk else ports.inputs) if is_small else None

    @property
    def width(self) -> int:
        """Rows of the first matrix."""
        return self.hidden * (2 if self.family is Family.GLU else 1)

    @property
    def has_bias(self) -> bool:
        """Whether there are biases behind the matrices."""
        return self.family in (Family.MLP, Family.GLU)

    @property
    def first_size(self) -> int:
        """Numbers of the first matrix."""
        return self.width * (self.inputs or self.channels)

    @property
    def num_parameters(self) -> int:
        """Of one graft."""
        if self.family is Family.AFFINE:
            return 2 * self.channels
        biases = self.width + self.channels if self.has_bias else 0
        return self.first_size + self.hidden * self.channels + biases
