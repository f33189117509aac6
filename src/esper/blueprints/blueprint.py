"""The contract of a blueprint: two pure functions and a few facts about them."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Generator, Tensor, nn


class Ports(NamedTuple):
    """What a graft connects: features it reads, channels it writes."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class Blueprint(ABC):
    """The recipe of a small module that a seed may grow.

    A subclass is a frozen dataclass whose fields are its hyper-parameters. ``delta`` is the branch that alpha scales
    and the host's output is added to; it is called once for many grafts through ``torch.vmap``, so it must be pure and
    must not look at tensor values.

    Attributes:
        id: name in the catalogue.
        family: what kind of module it is.
        is_trainable: whether its parameters ever move.
        starts_at_zero: whether a new graft is the exact identity, with every parameter able to receive gradient
            within ten steps (the birth check).
        reads: ``"input"`` reads the whole input of the place, ``"chunk"`` the host's output at the seed's own chunk.
    """

    id: ClassVar[str]
    family: ClassVar[str]
    is_trainable: ClassVar[bool] = True
    starts_at_zero: ClassVar[bool] = True

    reads: Literal["input", "chunk"] = "input"

    @abstractmethod
    def shapes(self, ports: Ports) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name."""

    @abstractmethod
    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        """First values of every parameter, float32 on the CPU, drawn from ``generator`` alone."""

    @abstractmethod
    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """What the graft adds: ``x [..., inputs]`` to ``[..., outputs]``."""

    @abstractmethod
    def to_module(self, ports: Ports, params: dict[str, Tensor]) -> nn.Module:
        """The same branch as a standard torch module, for export."""

    def num_parameters(self, ports: Ports) -> int:
        """Parameters of one graft."""
        total = 0
        for shape in self.shapes(ports).values():
            size = 1
            for length in shape:
                size *= length
            total += size
        return total

    @property
    def settings(self) -> dict[str, Any]:
        """Hyper-parameters as plain values."""
        return asdict(self)
