"""Counts of values in classes with fixed bounds."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

LIFECYCLE_BOUNDS = (10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0)
"""Of lifecycles, in steps."""


@dataclass
class Distribution:
    """A histogram that only grows.

    Args:
        bounds: of the classes, rising; a value belongs to the first that is not below it, and there is one class above.
        counts: of every class.
        sum: of all values.
    """

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Take in one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add_counts(self, counts: Sequence[int], total: float) -> None:
        """Take in values that were counted elsewhere, with their sum."""
        self.counts = [here + there for here, there in zip(self.counts, counts, strict=True)]
        self.sum += total
