"""How figures grow with a number: the straighter of two lines, in the number or in its logarithm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, slots=True)
class Law:
    """``a + b * n``, or ``a + b * log2(n)``.

    Args:
        kind: which.
        a: the constant.
        b: the slope.
        error: largest difference from what was measured, as a share of it.
    """

    kind: Literal["n", "log2 n"]
    a: float
    b: float
    error: float

    def at(self, number: float) -> float:
        """The figure at a number."""
        return self.a + self.b * (number if self.kind == "n" else math.log2(number))

    def __str__(self) -> str:
        return f"{self.a:,.4g} + {self.b:,.4g} {self.kind} (within {self.error:.0%})"


def line(measured: Mapping[int, float], kind: Literal["n", "log2 n"] = "n") -> Law:
    """The line through figures with the least squares of their relative errors."""
    numbers = np.array([float(one) if kind == "n" else math.log2(one) for one in measured])
    figures = np.array(list(measured.values()), dtype=float)
    weighed = np.stack([1 / figures, numbers / figures], axis=1)
    (a, b), *_ = np.linalg.lstsq(weighed, np.ones(len(figures)), rcond=None)
    return Law(kind, float(a), float(b), float(np.abs((a + b * numbers) / figures - 1).max()))


def better(measured: Mapping[int, float]) -> Law:
    """Whichever of both lines fits better."""
    return min((line(measured, "n"), line(measured, "log2 n")), key=lambda law: law.error)
