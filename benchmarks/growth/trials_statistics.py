"""Rates and means over runs, with what is known of them. A run is the unit: what happened within one hangs together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Args:
        hits: how often, in all runs together.
        count: out of how many.
        low, high: 95 % bootstrap interval of the share, by runs (percentile).
        at_least: exact one-sided 95 % lower bound; None where several of one run are counted, which hang together.
        at_most: the upper one.
    """

    hits: int
    count: int
    low: float
    high: float
    at_least: float | None
    at_most: float | None

    @property
    def share(self) -> float:
        """Hits of the count."""
        return self.hits / self.count

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the share."""
        return {"share": self.share, **asdict(self)}


def rate(hits: Sequence[int], counts: Sequence[int] | None = None) -> Rate | None:
    """The rate over runs; None if nothing was counted.

    Args:
        hits: of every run.
        counts: of every run, those that may hit; None where each run counts once.

    The exact bounds are those of Clopper and Pearson ("The use of confidence or fiducial limits illustrated in the case
    of the binomial", Biometrika 1934), at 95 % on one side.
    """
    k, n = np.asarray(hits, dtype=int), np.ones(len(hits), dtype=int) if counts is None else np.asarray(counts)
    k, n = k[n > 0], n[n > 0]
    if not len(n):
        return None
    low, high = _bootstrap(k, n)
    at_least = at_most = None
    if (n == 1).all():
        exact = [stats.binomtest(int(k.sum()), len(n), alternative=side) for side in ("greater", "less")]
        at_least = float(exact[0].proportion_ci(LEVEL, method="exact").low)
        at_most = float(exact[1].proportion_ci(LEVEL, method="exact").high)
    return Rate(int(k.sum()), int(n.sum()), low, high, at_least, at_most)


def mean(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Mean over runs and its 95 % bootstrap interval; None without values."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=float)
    low, high = _bootstrap(array, np.ones(len(array)))
    return float(array.mean()), low, high


def _bootstrap(sums: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> tuple[float, float]:
    """95 % interval of the ratio of totals, over runs drawn with replacement (percentile)."""
    random = np.random.default_rng(0)
    drawn = np.empty(RESAMPLES)
    for index in range(RESAMPLES):  # one at a time: all of them at once would fill the memory
        runs = random.integers(len(sums), size=len(sums))
        drawn[index] = sums[runs].sum() / counts[runs].sum()
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
