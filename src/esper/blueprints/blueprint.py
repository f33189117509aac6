"""The contract of a blueprint: two pure functions and a few facts about them."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Generator, Tensor, fx, nn

from esper.contracts.errors import ConfigError
from esper.contracts.reports import POSITION_AXES, Layout, Piece

LAYOUTS: frozenset[Layout] = frozenset(POSITION_AXES)
LARGEST_SIZE = 2**20
"""Where fitting into a budget that never binds ends."""


class Ports(NamedTuple):
    """What a graft connects.

    Args:
        inputs: features it reads; the chunk's own channels for ``reads="chunk"``.
        outputs: channels it writes.
        layout: what lies around the channels.
        positions: tokens, or positions along all axes, of one sample: only costs depend on it. 1 if nobody knows.
        pieces: where a colony meets the host, as far as the blueprint can; None where a graft has one place.
    """

    inputs: int
    outputs: int
    layout: Layout = "features"
    positions: int = 1
    pieces: tuple[Piece, ...] | None = None


@dataclass(frozen=True)
class Recipe(ABC):
    """What all that a seed may grow has in common: hyper-parameters, parameters, costs.

    A subclass is a frozen dataclass whose fields are its hyper-parameters, plain values with defaults; whole numbers
    are at least 1.

    Attributes:
        id: name in the catalogue.
        family: what kind of module it is.
        layouts: where it can grow.
        size: the hyper-parameter by which it is fitted into a budget; None if it has one size only.
        keeps_width: whether it can only write as many channels as it reads.
        confidence: how well the family has proved itself: 3 in Esper's own benchmarks, 2 in the literature at a zero
            start, 1 plausible, 0 unknown (also the level of blueprints that users register without saying more).
        rate: learning rate relative to that of other families, unless ``GrowthConfig.graft_lr`` is given.
        is_trainable: whether its parameters ever move.
        starts_at_zero: whether a new graft is the exact identity, with every parameter able to receive gradient
            within ten steps (the birth check).

    Raises:
        ConfigError: if a hyper-parameter has a value that it cannot have.
    """

    id: ClassVar[str]
    family: ClassVar[str]
    layouts: ClassVar[frozenset[Layout]] = LAYOUTS
    size: ClassVar[str | None] = None
    keeps_width: ClassVar[bool] = False
    confidence: ClassVar[int] = 0
    rate: ClassVar[float] = 1.0
    is_trainable: ClassVar[bool] = True
    starts_at_zero: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(field.default) is int and (type(value) is not int or value < 1):
                raise ConfigError(f"{self.id}: {field.name} must be a whole number of at least 1, not {value!r}.")
            if type(field.default) is bool and type(value) is not bool:
                raise ConfigError(f"{self.id}: {field.name} must be True or False, not {value!r}.")

    @property
    def reads_chunk(self) -> bool:
        """Whether it reads what the host wrote at its own chunk, and not the place's input."""
        return False

    @abstractmethod
    def shapes(self, ports: Any) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by name; each has at least one axis."""

    @abstractmethod
    def init(self, ports: Any, generator: Generator) -> dict[str, Tensor]:
        """First values of every parameter, float32 on the CPU, drawn from ``generator`` alone."""

    @abstractmethod
    def misfit(self, ports: Ports) -> str | None:
        """Why the blueprint cannot connect these ports; None if it can."""

    @abstractmethod
    def parts(self, ports: Ports) -> tuple[Any, ...]:
        """What is connected one by one, each with parameters of its own: ``ports``, or what a colony's pieces are to
        this blueprint. :meth:`shapes`, :meth:`init`, :meth:`num_parameters` and :meth:`multiply_adds` take one of
        them."""

    @abstractmethod
    def meets(self, piece: Piece) -> bool:
        """Whether it grows at such a piece of a colony."""

    def pieces(self, ports: Ports) -> tuple[Piece, ...]:
        """The pieces of a colony at which it grows, one for each of :meth:`parts`; none where it has a single place."""
        return ports.pieces or ()

    def inherited(self, ports: Any, host: nn.Module) -> dict[str, Tensor]:
        """What one part takes over at birth from the module that it meets, in place of what :meth:`init` gives."""
        return {}

    def num_parameters(self, ports: Any) -> int:
        """Parameters of one part."""
        return sum(math.prod(shape) for shape in self.shapes(ports).values())

    def multiply_adds(self, ports: Any) -> int:
        """Multiply-adds of a forward pass for each row of outputs.

        By default one for each parameter, which is exact for dense maps and convolutions. Biases and scales of single
        channels are among them, although ``FlopCounterMode`` does not count those; activation functions are not.
        """
        return self.num_parameters(ports)

    def rate_at(self, ports: Ports) -> float:
        """Learning rate where it connects these ports, relative to that of other families."""
        return self.rate

    def parameters_of(self, ports: Ports) -> int:
        """Parameters of a whole graft, or colony."""
        return sum(map(self.num_parameters, self.parts(ports)))

    def work_of(self, ports: Ports) -> int:
        """Multiply-adds of a forward pass for each row of outputs; of a colony, for the traced training step."""
        rows = [1] if ports.pieces is None else [piece.rows for piece in self.pieces(ports)]
        return sum(self.multiply_adds(part) * count for part, count in zip(self.parts(ports), rows, strict=True))

    def sized(self, ports: Ports, multiply_adds: float = math.inf, parameters: float = math.inf) -> Self | None:
        """The largest version within a budget; None if even the smallest exceeds it.

        Args:
            ports: what it would connect.
            multiply_adds: budget per row of outputs.
            parameters: budget of the whole graft.
        """
        return _largest(self, ports, multiply_adds, parameters)

    @property
    def settings(self) -> dict[str, Any]:
        """Hyper-parameters as plain values."""
        return asdict(self)


@lru_cache(maxsize=4096)  # controllers ask at every boundary, of every place, and budgets seldom change
def _largest(recipe: Any, ports: Ports, multiply_adds: float, parameters: float) -> Any:
    """See :meth:`Recipe.sized`."""

    def version(value: int) -> Any:
        return recipe if recipe.size is None else replace(recipe, **{recipe.size: value})

    def is_too_large(value: int) -> bool:
        one = version(value)
        return bool(one.work_of(ports) > multiply_adds or one.parameters_of(ports) > parameters)

    sizes = range(1, 2 if recipe.size is None else LARGEST_SIZE + 1)
    largest = bisect_left(sizes, True, key=is_too_large)
    return version(largest) if largest else None


@dataclass(frozen=True)
class Blueprint(Recipe):
    """The recipe of a small module that a seed may grow.

    ``delta`` is the branch that alpha scales and the host's output is added to. It is called once for
    many grafts through ``torch.vmap`` and traced by ``torch.fx`` for export, so it must be pure, must draw no random
    numbers, and may branch neither on tensor values nor on the shape of ``x`` (shapes of parameters are known).
    Activations come with their channels last, whatever the host does:

    ====================  ============================
    layout                shape
    ====================  ============================
    features              ``[..., channels]``, each row by itself
    tokens                ``[batch, tokens, channels]``
    signal                ``[batch, positions, channels]``
    image                 ``[batch, rows, columns, channels]``
    ====================  ============================

    Attributes:
        reads: ``"input"`` reads the whole input of the place, ``"chunk"`` the host's output at the seed's own chunk.
    """

    reads: Literal["input", "chunk"] = "input"

    def __post_init__(self) -> None:
        if self.reads not in ("input", "chunk"):
            raise ConfigError(f"{self.id}: reads must be 'input' or 'chunk', not {self.reads!r}.")
        super().__post_init__()

    @property
    def reads_chunk(self) -> bool:
        return self.reads == "chunk"

    @abstractmethod
    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        """What the graft adds: ``x [..., inputs]`` to ``[..., outputs]``."""

    def to_module(self, ports: Ports, params: dict[str, Tensor]) -> nn.Module:
        """The same branch as a module without Esper, for export: same activations, channels last.

        By default the ``torch.fx`` trace of ``delta`` over copies of the parameters.
        """
        branch = _Branch(self, params)
        return fx.GraphModule(branch, fx.Tracer().trace(branch), type(self).__name__)

    def misfit(self, ports: Ports) -> str | None:
        """Why the blueprint cannot connect these ports; None if it can."""
        if ports.pieces is not None:
            if not ports.pieces:
                return "it grows beside blocks, and here are only layers that share their channels: take 'widen'"
            return next(filter(None, map(self.misfit, self.parts(ports))), None)
        if ports.layout not in self.layouts:
            return f"it grows on {' or '.join(sorted(self.layouts))}, and the place has {ports.layout}"
        if ports.inputs < 1:
            return "it reads the place's input, which is nothing that a graft can read: take reads='chunk'"
        if self.keeps_width and ports.inputs != ports.outputs:
            return f"it keeps the width, and {ports.inputs} inputs are not {ports.outputs} outputs: take reads='chunk'"
        return None

    def meets(self, piece: Piece) -> bool:
        return piece.role == "beside"

    def parts(self, ports: Ports) -> tuple[Ports, ...]:
        if ports.pieces is None:
            return (ports,)
        return tuple(
            Ports(one.outputs if self.reads == "chunk" else one.inputs, one.outputs, one.layout, one.positions)
            for one in ports.pieces
        )


def drawn(shapes: dict[str, tuple[int, ...]], generator: Generator, *names: str) -> dict[str, Tensor]:
    """Zeros, except for ``names``: U(-1/sqrt(n), 1/sqrt(n)) with n the fan-in of the first, as in ``nn.Linear``."""
    params = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}
    for name in names:
        bound = 1 / math.sqrt(math.prod(shapes[names[0]][1:]))
        params[name].uniform_(-bound, bound, generator=generator)
    return params


class _Branch(nn.Module):
    """What is traced for export."""

    def __init__(self, blueprint: Blueprint, params: dict[str, Tensor]) -> None:
        super().__init__()
        self._blueprint = blueprint
        for name, value in params.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        return self._blueprint.delta(dict(self.named_parameters()), x)
