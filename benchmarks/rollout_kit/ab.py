"""How often ``esper ab`` names a winner where there is none, and how often it finds what there is.

Experiments are simulated units; every look of each is judged by the code of the product. A t test at a fixed level that
looks as often, and the product's own test where A always goes first, are judged by the same harness: it can see a test
that is wrong.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from esper.evaluation.ab.metrics import Metric, Wishes, metrics_of
from esper.evaluation.ab.verdict import Verdict, finding
from esper.evaluation.sequential import is_ruled_out

# X experiments, M metrics, N pairs; differences are A - B, NaN where a unit of the pair failed

ALPHA = 0.05
Differences = NDArray[np.float64]
Settings = dict[str, Callable[[np.random.Generator, int], Differences]]


def peeking(rng: np.random.Generator, experiments: int) -> Differences:
    """One metric, 100 looks."""
    return rng.normal(size=(experiments, 1, 100))


def six_metrics(rng: np.random.Generator, experiments: int) -> Differences:
    """Six metrics that go together (correlation 0.5), 60 looks."""
    return rng.normal(size=(experiments, 6, 60)) + rng.normal(size=(experiments, 1, 60))


def autocorrelated(rng: np.random.Generator, experiments: int, *, fixed_order: bool = False) -> Differences:
    """Latencies on a machine that drifts: noise that lasts (AR(1), 0.95) and slows down steadily; 60 looks."""
    slots = rng.normal(size=(experiments, 120))
    for slot in range(1, 120):
        slots[:, slot] += 0.95 * slots[:, slot - 1]
    slots += 0.5 * np.arange(120)
    first_less_second_XN = slots[:, 0::2] - slots[:, 1::2]
    order_XN = np.ones((experiments, 60)) if fixed_order else rng.choice([-1.0, 1.0], size=(experiments, 60))
    return (order_XN * first_less_second_XN)[:, None]


def heavy_tails(rng: np.random.Generator, experiments: int) -> Differences:
    """Student's t with 1.5 degrees of freedom, which has no variance; 60 looks."""
    return rng.standard_t(1.5, size=(experiments, 1, 60))


def unequal_n(rng: np.random.Generator, experiments: int) -> Differences:
    """A loses 2 % of its units, B 20 %; 60 pairs."""
    found = rng.normal(size=(experiments, 1, 60))
    lost = (rng.random((experiments, 60)) < 0.02) | (rng.random((experiments, 60)) < 0.2)
    return np.where(lost[:, None], np.nan, found)


SETTINGS: Settings = {one.__name__: one for one in (peeking, six_metrics, autocorrelated, heavy_tails, unequal_n)}


def metrics(count: int, *, margin: float | None = None, primary: int | None = None) -> tuple[Metric, ...]:
    """Metrics as the product makes them, of which more is better."""
    names = tuple(f"score_{index}" for index in range(count))
    margins = {} if margin is None else {name: str(margin) for name in names}
    return metrics_of(names, names[:primary], Wishes(margins=margins), ALPHA)


def verdicts(differences_MN: Differences, compared: tuple[Metric, ...]) -> list[Verdict]:
    """What the product says of an experiment.

    Its intervals only ever shrink, so that the last look knows what any look before has found.
    """
    values_MN = [[(float(value), 0.0) for value in one if np.isfinite(value)] for one in differences_MN]
    return [finding(metric, values_N, None).verdict for metric, values_N in zip(compared, values_MN, strict=True)]


def winners(differences_XMN: Differences, compared: tuple[Metric, ...]) -> list[list[Verdict]]:
    """Verdicts of the experiments in which any metric has a winner.

    The product names none where zero is not ruled out, which is looked up for all experiments at once.
    """
    ruled_out_XM = np.zeros(differences_XMN.shape[:2], dtype=bool)
    for index, metric in enumerate(compared):
        for some_X, some_XN in _without_gaps(differences_XMN[:, index]):
            ruled_out_XM[some_X, index] = is_ruled_out(some_XN, metric.alpha)
    found = [verdicts(differences_XMN[index], compared) for index in np.flatnonzero(ruled_out_XM.any(axis=1))]
    return [one for one in found if {Verdict.A, Verdict.B} & set(one)]


def _without_gaps(differences_XN: Differences) -> Iterator[tuple[NDArray[np.int64], Differences]]:
    """Indices of experiments with as many complete pairs, and these pairs."""
    complete_XN = np.isfinite(differences_XN)
    counts_X = complete_XN.sum(axis=1)
    for count in np.unique(counts_X):
        some_X = np.flatnonzero(counts_X == count)
        yield some_X, differences_XN[some_X][complete_XN[some_X]].reshape(len(some_X), count)


def peeking_t(differences_XMN: Differences) -> int:
    """Experiments in which a t test at the level that does not know of the looks ever says "significant"."""
    total = 0
    for differences_MN in differences_XMN:
        levels = [_peeked(one[np.isfinite(one)]) for one in differences_MN]
        total += any(levels)
    return total


def _peeked(differences_N: Differences) -> bool:
    counts_N = np.arange(3, len(differences_N) + 1)
    mean_N, square_N = np.cumsum(differences_N)[2:] / counts_N, np.cumsum(differences_N**2)[2:] / counts_N
    error_N = np.sqrt((square_N - mean_N**2) / (counts_N - 1))
    return bool((np.abs(mean_N) > stats.t.ppf(1 - ALPHA / 2, counts_N - 1) * error_N).any())


def rate(count: int, experiments: int) -> dict[str, Any]:
    """A share with the bounds of its exact one-sided 95 % intervals (Clopper and Pearson)."""
    low = stats.beta.ppf(0.05, count, experiments - count + 1) if count else 0.0
    high = stats.beta.ppf(0.95, count + 1, experiments - count) if count < experiments else 1.0
    shares = {"share": count / experiments, "lower_95": float(low), "upper_95": float(high)}
    return {"experiments": experiments, "count": count, **shares}


def null(experiments: int) -> dict[str, Any]:
    """False winners in all settings, and of the tests that shall fail."""
    found: dict[str, Any] = {"esper ab": {}, "t test that peeks": {}}
    for number, (name, setting) in enumerate(SETTINGS.items()):
        differences_XMN = setting(np.random.default_rng([number, 1]), experiments)
        compared = metrics(differences_XMN.shape[1])
        found["esper ab"][name] = rate(len(winners(differences_XMN, compared)), experiments)
        found["t test that peeks"][name] = rate(peeking_t(differences_XMN), experiments)
    few = max(experiments // 10, 20)
    drifting = autocorrelated(np.random.default_rng(9), few, fixed_order=True)
    found["esper ab, A always first, autocorrelated"] = rate(len(winners(drifting, metrics(1))), few)
    return found


def effect(experiments: int) -> dict[str, Any]:
    """How often a difference of 0.8 standard deviations is found within 30 pairs, on the right side."""
    rng = np.random.default_rng(20)
    found = {}
    for name, count, primary in (("one metric", 1, 1), ("one primary metric of six", 6, 1), ("one of six", 6, 6)):
        compared = metrics(count, primary=primary)[:1]
        right = winners(rng.normal(0.8, size=(experiments, 1, 30)), compared).count([Verdict.A])
        found[name] = rate(right, experiments)
    return found


def equivalence(experiments: int) -> dict[str, Any]:
    """How often "equivalent" is said, with a margin of half a standard deviation and 100 pairs."""
    rng = np.random.default_rng(30)
    compared = metrics(1, margin=0.5)
    found = {}
    for name, shift in (("where A and B are alike", 0.0), ("where they differ by the margin", 0.5)):
        said = [verdicts(rng.normal(shift, size=(1, 100)), compared)[0] for _ in range(experiments)]
        found[name] = rate(said.count(Verdict.EQUIVALENT), experiments)
    return found


def measure(experiments: int = 5000, effects: int = 2000, equivalences: int = 300) -> dict[str, Any]:
    """Everything that the product's page says of its errors."""
    return {
        "false winners": null(experiments),
        "0.8 standard deviations, 30 pairs": effect(effects),
        "equivalent within 0.5 standard deviations": equivalence(equivalences),
    }


def table(found: dict[str, Any]) -> str:
    """False winners and what is found, in Markdown."""
    wrong, effects = found["false winners"], found["0.8 standard deviations, 30 pairs"]
    lines = ["| A and B are alike | `esper ab` names a winner | at most (95 %) | t test |", "|---|--:|--:|--:|"]
    for name, one in wrong["esper ab"].items():
        other = wrong["t test that peeks"][name]
        what = (SETTINGS[name].__doc__ or "").rstrip(".")
        lines.append(f"| {what} | {one['share']:.1%} | {one['upper_95']:.1%} | {other['share']:.1%} |")
    lines += ["", "| A is better by 0.8 standard deviations, 30 pairs | found |", "|---|--:|"]
    return "\n".join([*lines, *(f"| {name} | {one['share']:.0%} |" for name, one in effects.items())])
