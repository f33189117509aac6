"""How well a place and its chunks are, and how much the loss asks of them. Pure functions over columns of floats."""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from esper.contracts.reports import PlaceReport, SeedReport

VARIANCE, INACTIVE, CORRELATION = 0.6, 0.3, 0.1
"""Weights of the terms of health."""

SILENT = 1e-6
"""A chunk is silent if it varies by less than this share of what is usual in its place. Not more: behind a
very narrow layer even random chunks may vary a thousand times less than others."""

CLOSED = 0.99
"""A chunk is closed if the activation stops more than this share of its values."""


class Vitals(NamedTuple):
    """What a place's columns say about it as a whole.

    Attributes:
        demand: how strongly the loss depends on a channel, see :func:`demand`; None if it was not measured.
        health: mean over its channels; None if it was not measured.
        silent: seeds that carry nothing while others of the place do.
        is_closed: whether the activation lets through nothing of any seed.
    """

    demand: float | None
    health: float | None
    silent: tuple[int, ...]
    is_closed: bool


def health(seeds: SeedReport, num_seeds: int) -> list[float | None]:
    """How well each chunk is, in [0, 1]: 0.6 variance + 0.3 activity + 0.1 independence.

    Variance counts as ``v / (v + m)`` with ``m`` the median of the place's chunks that vary at all, so that the usual
    chunk has a half and a silent one none; activity is one minus the inactive ratio; independence one minus the mean
    absolute correlation. A term that is missing or not finite is left out and the others' weights grow in proportion.

    Returns:
        One value per seed; None where nothing was measured.
    """
    variances = _column(seeds.chunk_variance, num_seeds)
    usual = _usual(variances)
    terms = (
        (VARIANCE, [None if v is None or usual is None else max(0.0, v) / (max(0.0, v) + usual) for v in variances]),
        (INACTIVE, [_complement(share) for share in _column(seeds.inactive_ratio, num_seeds)]),
        (CORRELATION, [_complement(value) for value in _column(seeds.mean_abs_correlation, num_seeds)]),
    )
    scores: list[float | None] = []
    for seed in range(num_seeds):
        known = [(weight, column[seed]) for weight, column in terms]
        total = sum(weight for weight, value in known if value is not None)
        scores.append(sum(w * value for w, value in known if value is not None) / total if total else None)
    return scores


def demand(seeds: SeedReport, num_seeds: int) -> list[float | None]:
    """How strongly the loss depends on a channel of each chunk: gradient norm times standard deviation of its values.

    The product is the first-order change of the loss when a channel is lost (Molchanov et al., "Pruning Convolutional
    Neural Networks for Resource Efficient Inference", ICLR 2017, eq. 7). Unlike the gradient alone it does not change
    if a layer is scaled up and the next one down. Summed over channels it is about the same for all layers of a chain
    (for ReLU without bias exactly so, by Euler's theorem), so it is large per channel where few channels carry what
    elsewhere many do.

    Returns:
        One value per seed; None where gradient or variance were not measured.
    """
    gradients, variances = _column(seeds.gradient_norm, num_seeds), _column(seeds.chunk_variance, num_seeds)
    return [
        None if g is None or v is None else _finite(abs(g) * math.sqrt(max(0.0, v)))
        for g, v in zip(gradients, variances, strict=True)
    ]


def vitals(place: PlaceReport) -> Vitals:
    """Demand, health and faults of a whole place.

    Demand is the root mean square over channels, and over a sample's positions a norm: of places of one model all
    write for the same samples, so the root of ``rows`` stands for it.
    """
    seeds, count = place.seeds, place.num_seeds
    if seeds is None:
        return Vitals(None, None, (), False)
    widths = [end - first for first, end in zip(place.bounds, place.bounds[1:], strict=False)]
    squares = [None if value is None else value * value for value in demand(seeds, count)]
    mean_square = _weighted_mean(squares, widths)
    variances = _column(seeds.chunk_variance, count)
    usual = _usual(variances)
    silent = () if usual is None else tuple(s for s, v in enumerate(variances) if v is not None and v < SILENT * usual)
    inactive = _column(seeds.inactive_ratio, count)
    return Vitals(
        demand=None if mean_square is None else _finite(math.sqrt(mean_square * max(1, place.rows))),
        health=_weighted_mean(health(seeds, count), widths),
        silent=silent,
        is_closed=count > 0 and all(share is not None and share > CLOSED for share in inactive),
    )


def _column(values: Sequence[float] | None, length: int) -> list[float | None]:
    return [None] * length if values is None else [_finite(value) for value in values]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _usual(variances: Sequence[float | None]) -> float | None:
    """Median of the chunks that vary at all: of all, it would be 0 where half of them are dead."""
    varying = [value for value in variances if value is not None and value > 0]
    return median(varying) if varying else None


def _complement(share: float | None) -> float | None:
    return None if share is None else min(1.0, max(0.0, 1 - share))


def _weighted_mean(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    known = [(value, weight) for value, weight in zip(values, weights, strict=False) if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
