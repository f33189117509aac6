"""What is claimed of growth, with intervals over seeds and p-values that are corrected for all that is claimed.

Recipes are chosen by loss, which is less noisy than accuracy on few samples. So that nobody is judged by what it
was not chosen for alone, every claim to be better is made of accuracy and of loss.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
EXACT = 2**14
"""Up to so many flips of signs are all tried; of more, so many at random."""

LEVEL = 0.05


class Claim(NamedTuple):
    """That a grown row is better than another, or at most a margin of points of accuracy below it."""

    grown: str
    against: str
    measure: Literal["accuracy", "loss"] = "accuracy"
    is_non_inferiority: bool = False


FAMILIES: dict[str, tuple[Claim, ...]] = {
    "headline": (
        Claim("grown", "host_on"),
        Claim("grown", "host_on", "loss"),
        Claim("grown", "static", is_non_inferiority=True),
        Claim("grown", "static"),
        Claim("grown", "static", "loss"),
    ),
    "sunk cost": (
        Claim("sunk_grown", "sunk_host_on"),
        Claim("sunk_grown", "sunk_host_on", "loss"),
        Claim("sunk_grown", "sunk_static"),
        Claim("sunk_grown", "sunk_static", "loss"),
    ),
}
"""Claims that are corrected together, over all tasks."""


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (percentile, over seeds)."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or not np.isfinite(array).all() or np.ptp(array) == 0:
        return float(array.mean()), float(array.mean()), float(array.mean())
    random = np.random.default_rng(0)
    found = stats.bootstrap((array,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=random)
    return float(array.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def p_above(differences: Sequence[float], low: float = 0.0) -> float:
    """One-sided p-value of the claim that the mean of paired differences is above ``low``, by flips of their signs.

    Exact up to 14 pairs. (Fisher, "The design of experiments", 1935, section 21.) A difference that is minus infinity
    or unknown disproves the claim; one that is infinite counts as the largest of the others.
    """
    shifted = np.asarray(differences, dtype=float) - low
    if not (shifted > -np.inf).all():
        return 1.0
    shifted = np.minimum(shifted, shifted.max(initial=0.0, where=np.isfinite(shifted)))
    if len(shifted) == 1:
        return 0.5 if shifted[0] > 0 else 1.0
    found = stats.permutation_test(
        (shifted,),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=EXACT,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several (Holm, "A simple sequentially rejective multiple test procedure", 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def judged(
    gains: Mapping[str, Mapping[Claim, Sequence[float]]], margins: Mapping[str, float], planned: int
) -> list[dict[str, Any]]:
    """All claims of one family, with p-values corrected over all of them, and over those that are yet to be computed.

    Args:
        gains: by task and claim, for every seed: by how many points of accuracy, or nats of loss, the grown row is
            better.
        margins: by task: points below at which growth still counts as no worse.
        planned: how many claims the family has in all.
    """
    found = []
    for task, by_claim in gains.items():
        for claim, differences in by_claim.items():
            margin = margins[task] if claim.is_non_inferiority else 0.0
            found.append(
                {
                    "task": task,
                    "grown": claim.grown,
                    "against": claim.against,
                    "measure": claim.measure,
                    "margin": margin if claim.is_non_inferiority else None,
                    "seeds": len(differences),
                    "won": sum(one > 0 for one in differences),
                    "gain": interval(differences),
                    "p": p_above(differences, -margin),
                }
            )
    corrected = holm([one["p"] for one in found] + [1.0] * (planned - len(found)))[: len(found)]
    return [one | {"p_holm": p, "holds": p <= LEVEL} for one, p in zip(found, corrected, strict=True)]
