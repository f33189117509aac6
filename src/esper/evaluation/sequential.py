"""Confidence sequences: intervals for a mean difference that hold at every look at once.

A fixed-level test is right once. Whoever looks after every run, and stops when it says "significant", is wrong far more
often than its level. The interval here may be looked at after every difference, and stopped by at will: the chance
that it ever misses the true value is at most ``alpha``.

The maths: let the differences between two things that are in truth alike be as likely positive as negative, given all
that came before and their size. Who goes first is drawn anew each time, which makes it so whatever their distribution.
Then for any bet ``l_i`` that may depend on sizes and on the past, ``prod_i exp(l_i x_i) / cosh(l_i x_i)`` is a
martingale that begins at 1 (the sign-flip likelihood ratio; its bound by ``exp(-l^2 x^2 / 2)`` is de la Peña, Annals of
Probability 27, 1999). So is a mixture over bets and over both signs, and by Ville's inequality it ever exceeds
``1 / alpha`` with a probability of at most ``alpha``. The interval holds the shifts ``m`` that the differences less
``m``, taken to be symmetric around it, do not rule out so.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Bets in units of the root mean square of the differences so far; weights fall by 1.25. Differences of 0.8 standard
# deviations are found within 30 in 89 % of experiments (benchmarks/rollout_kit).
_BETS_L = np.array([1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06])
_WEIGHTS_L = 1.25 ** -np.arange(len(_BETS_L)) / np.sum(1.25 ** -np.arange(len(_BETS_L)))
_BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the mean difference lies, at the level it was asked for; endless where too little is known."""

    low: float
    high: float


def log_evidence(differences_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """How strongly the differences so far speak against a mean of zero.

    Args:
        differences_N: ``[n]``, in the order in which they came, finite.

    Returns:
        ``[n]``, the logarithm of the mixture after each. It may be compared with ``log(1 / alpha)`` at every look; that
        it ever exceeded it counts for good.
    """
    counts_N = np.arange(1, len(differences_N) + 1)
    scale_N = np.sqrt(np.cumsum(differences_N**2) / counts_N)
    bets_LN = _BETS_L[:, None] * np.divide(differences_N, scale_N, out=np.zeros_like(scale_N), where=scale_N > 0)
    cost_LN = np.logaddexp(bets_LN, -bets_LN) - np.log(2)
    both_LN = np.logaddexp(np.cumsum(bets_LN - cost_LN, axis=1), np.cumsum(-bets_LN - cost_LN, axis=1)) - np.log(2)
    return np.logaddexp.reduce(both_LN + np.log(_WEIGHTS_L)[:, None], axis=0)


def confidence_interval(differences_N: NDArray[np.float64], alpha: float = 0.05) -> Interval:
    """The confidence sequence after the last difference: shifts that no look up to now has ruled out.

    Args:
        differences_N: ``[n]``, in the order in which they came, finite.
        alpha: chance that the interval ever misses, over all looks, in (0, 1).
    """
    if not len(differences_N):
        return Interval(-np.inf, np.inf)

    def is_ruled_out(shift: float) -> bool:
        return bool(log_evidence(differences_N - shift).max() > np.log(1 / alpha))

    centre = float(np.median(differences_N))
    spread = float(np.abs(differences_N - centre).max()) or abs(centre) or 1.0
    return Interval(_edge(is_ruled_out, centre, -spread), _edge(is_ruled_out, centre, spread))


def _edge(is_ruled_out: Callable[[float], bool], centre: float, step: float) -> float:
    """Where shifts begin to be ruled out, going from the centre by growing steps; infinite where none is."""
    outside = centre + step
    for _ in range(_BISECTIONS):
        if is_ruled_out(outside):
            break
        step *= 2
        outside = centre + step
    else:
        return float(np.copysign(np.inf, step))
    inside = centre
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if is_ruled_out(middle) else (middle, outside)
    return outside
