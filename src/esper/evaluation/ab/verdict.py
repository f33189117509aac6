"""What the pairs so far say of a metric, and whether the sides lost as many units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from esper.evaluation.ab.metrics import Metric
from esper.evaluation.sequential import Interval, confidence_interval, is_ruled_out, log_lopsidedness

LOPSIDED_ALPHA = 0.01
"""Chance that sides which lose units alike are ever called lopsided."""


class Verdict(StrEnum):
    """What is known of a metric."""

    A = "A"
    B = "B"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Finding:
    """What the pairs so far say of one metric.

    Args:
        verdict: which side is better; once reached it stays.
        decided_after: complete pairs at which it was reached; None while inconclusive.
        pairs: complete pairs.
        mean_a, mean_b: over them.
        difference: mean of A - B, or of the logarithm of A / B.
        low, high: of the confidence sequence of that; infinite where too little is known.
        effect_size: the difference in standard deviations of the differences; None where they do not vary.
    """

    verdict: Verdict
    decided_after: int | None
    pairs: int
    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    effect_size: float | None


def verdict_of(metric: Metric, differences_N: NDArray[np.float64], interval: Interval) -> Verdict:
    """The verdict of one look, from all differences so far and their interval at the metric's level.

    A side wins only where a difference of zero was itself ruled out, whatever the interval's search has found.
    """
    if (interval.low > 0 or interval.high < 0) and is_ruled_out(differences_N, metric.alpha):
        return Verdict.A if (interval.low > 0) == metric.is_more_better else Verdict.B
    if metric.bound is not None and -metric.bound < interval.low and interval.high < metric.bound:
        return Verdict.EQUIVALENT
    return Verdict.INCONCLUSIVE


def finding(metric: Metric, values: Sequence[tuple[float, float]], before: Finding | None) -> Finding:
    """What the complete pairs say.

    Args:
        metric: which.
        values: of A and B in every complete pair, in their order; at least one.
        before: of the look before; its verdict stays if it was one.
    """
    differences_N = np.array([metric.difference(a, b) for a, b in values])
    interval = confidence_interval(differences_N, metric.alpha)
    verdict, decided_after = verdict_of(metric, differences_N, interval), None
    if before is not None and before.verdict is not Verdict.INCONCLUSIVE:
        verdict, decided_after = before.verdict, before.decided_after
    elif verdict is not Verdict.INCONCLUSIVE:
        decided_after = len(values)
    mean = float(differences_N.mean())
    deviation = float(differences_N.std(ddof=1)) if len(values) > 1 else 0.0
    mean_a, mean_b = np.array(values).mean(axis=0).tolist()
    effect_size = mean / deviation if deviation > 0 else None
    return Finding(verdict, decided_after, len(values), mean_a, mean_b, mean, interval.low, interval.high, effect_size)


def lopsided(failed_sides: Sequence[str]) -> str | None:
    """Why the comparison is suspect: one side lost more units than chance explains. None if it is not.

    Args:
        failed_sides: of pairs in which one unit failed and the other did not, the side that failed, in their order.
    """
    if not failed_sides:
        return None
    first_N = np.array([side == "A" for side in failed_sides])
    if log_lopsidedness(first_N).max() < math.log(1 / LOPSIDED_ALPHA):
        return None
    a = int(first_N.sum())
    return (
        f"Only A failed in {a} pairs and only B in {len(first_N) - a}: chance does not explain that. What is left of "
        "the side that fails is no fair sample of it."
    )
