"""What is compared: a subject is measured once for every seed, and what comes of it is a unit."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from esper.contracts.errors import EsperError


class UnitFailedError(EsperError):
    """A unit came to no result. It is told and counted, never left out."""


class Outputs(NamedTuple):
    """What a subject computes.

    Args:
        inputs: tells from what; only outputs from the same inputs can be compared.
        arrays: one for every output.
    """

    inputs: str
    arrays: list[NDArray[Any]]


@dataclass(frozen=True)
class Unit:
    """One measurement of a subject.

    Args:
        metrics: numbers by name, finite; ``latency_us`` is added by the runner where there are laps.
        lap: times one lap and gives seconds a call; None where nothing is timed.
        outputs: gives what the subject computes; None where there is nothing to compare.
        primary: names of the metrics that matter most where the user names none; empty: all alike.
    """

    metrics: Mapping[str, float]
    lap: Callable[[], float] | None = None
    outputs: Callable[[], Outputs | None] | None = None
    primary: tuple[str, ...] = ()


class Subject(Protocol):
    """One side of a comparison.

    Attributes:
        name: for people.
        identity: two subjects with the same one are the same; it changes with what is measured.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    def measure(self, seed: int) -> AbstractContextManager[Unit]:
        """Measure it; inside, its laps can be timed.

        Raises:
            UnitFailedError: if that comes to no result.
            ConfigError: if it can never come to one.
        """
        ...


@dataclass(frozen=True)
class InProcess:
    """A function of this process that takes a seed and gives metrics. Its name stands for what it measures."""

    name: str
    function: Callable[[int], Mapping[str, float]]

    @property
    def identity(self) -> str:
        """The name."""
        return self.name

    @contextmanager
    def measure(self, seed: int) -> Iterator[Unit]:
        """Call it; what it raises is not caught."""
        yield Unit(checked(self.function(seed)))


def checked(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as finite numbers.

    Raises:
        UnitFailedError: if one is none.
    """
    for name, value in metrics.items():
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise UnitFailedError(f"{name} is {value!r}, not a finite number")
    if not metrics:
        raise UnitFailedError("there are no metrics")
    return {str(name): float(value) for name, value in metrics.items()}
