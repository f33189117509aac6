"""Runs with the flag on against runs without it: how much worse they are for certain.

Runs do not come in pairs. Each is paired with the latest of the other cohort, and of its kind, that is still alone, so
that both met the same machines, and no run counts twice. What is asked may be asked at every look:

- step time and loss: two runs that differ in nothing but the flag are as likely to differ one way as the other, which
  is what :mod:`esper.evaluation.sequential` needs; it also holds for a difference by the margin alone;
- errors and leaks: their difference is -1, 0 or 1, and whoever bets a part of what he has on more than the margin, at
  odds that are fair for the margin, will hold ``1 / alpha`` times as much with a chance of at most ``alpha`` if the
  rate is not above it (Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86, 2024, section 4).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from esper.evaluation.rollout.health import ERRORS, LEAKS, LOSS, STEP_TIME, Unit
from esper.evaluation.rollout.plan import Criteria
from esper.evaluation.sequential import confidence_interval

MEASURES = (STEP_TIME, LOSS, ERRORS, LEAKS)
_BETS_L = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.9])
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure, in shares: 0.1 is a tenth worse, or ten points more of the runs.

    Args:
        measure: its name.
        pairs: that were compared.
        worse_by: the flag's doing as it looks; None without pairs.
        at_least: by how much it is worse for certain; None if nothing is.
        margin: that is allowed.
    """

    measure: str
    pairs: int
    worse_by: float | None
    at_least: float | None
    margin: float

    @property
    def is_harm(self) -> bool:
        """Whether it is worse than allowed for certain."""
        return self.at_least is not None and self.at_least > self.margin

    @property
    def looks_fine(self) -> bool:
        """Whether it is no worse than allowed as far as it looks."""
        return self.worse_by is None or self.worse_by <= self.margin


def compare(units: Iterable[Unit], criteria: Criteria) -> list[Comparison]:
    """All measures.

    Args:
        units: in the order in which they became known.
        criteria: the margins, and the chance of an error, which the measures share.
    """
    of_measure: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        of_measure[unit.measure].append(unit)
    alpha = criteria.alpha / len(MEASURES)
    return [_compared(measure, pairs(of_measure[measure]), criteria, alpha) for measure in MEASURES]


def pairs(units: Iterable[Unit]) -> list[tuple[Unit, Unit]]:
    """With the flag and without it, in the order in which they came together."""
    waiting: dict[tuple[str, bool], list[Unit]] = defaultdict(list)
    found = []
    for unit in units:
        if others := waiting[unit.kind, not unit.is_on]:
            other = others.pop()
            found.append((unit, other) if unit.is_on else (other, unit))
        else:
            waiting[unit.kind, unit.is_on].append(unit)
    return found


def _compared(measure: str, paired: list[tuple[Unit, Unit]], criteria: Criteria, alpha: float) -> Comparison:
    margin = criteria.more_errors if measure in (ERRORS, LEAKS) else criteria.worse_by
    if not paired:
        return Comparison(measure, 0, None, None, margin)
    if measure in (ERRORS, LEAKS):
        differences_N = np.array([on.value - off.value for on, off in paired])
        at_least = lower_bound_of_mean(differences_N, alpha)
        return Comparison(measure, len(paired), float(differences_N.mean()), at_least, margin)
    differences_N = _log_ratios(paired) if measure == STEP_TIME else _in_levels(paired)
    seems, low = float(np.median(differences_N)), confidence_interval(differences_N, alpha).low
    if measure == STEP_TIME:
        seems, low = float(np.expm1(seems)), float(np.expm1(low))
    return Comparison(measure, len(paired), seems, low if np.isfinite(low) and low > -1 else None, margin)


def _log_ratios(paired: list[tuple[Unit, Unit]]) -> NDArray[np.float64]:
    return np.log([on.value for on, _ in paired]) - np.log([off.value for _, off in paired])


def _in_levels(paired: list[tuple[Unit, Unit]]) -> NDArray[np.float64]:
    """In units of what runs of the kind come to without the flag: a loss may be 0 or below."""
    without = defaultdict(list)
    for _, off in paired:
        without[off.kind].append(abs(off.value))
    level = {kind: median(values) or 1.0 for kind, values in without.items()}
    return np.array([(on.value - off.value) / level[on.kind] for on, off in paired])


def lower_bound_of_mean(differences_N: NDArray[np.float64], alpha: float) -> float:
    """What the mean is above, for certain, at every look at once.

    Args:
        differences_N: ``[n]`` in [-1, 1], in the order in which they came.
        alpha: chance that it is ever wrong.
    """

    def is_ruled_out(mean: float) -> bool:
        gains_LN = np.log1p(_BETS_L[:, None] / (1 + mean) * (differences_N - mean))
        held_N = np.logaddexp.reduce(np.cumsum(gains_LN, axis=1), axis=0) - np.log(len(_BETS_L))
        return bool(held_N.max() > np.log(1 / alpha))

    low, high = -1.0 + 1e-9, 1.0
    if not is_ruled_out(low):
        return -1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low
