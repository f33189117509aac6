"""Runs with the flag on against runs without it: how much worse they are for certain.

Runs are compared in blocks: those of one kind that became known one after the other, until both cohorts are among them,
so that all of a block met the same machines and no run counts twice. Of each block one number is taken, and what is
asked of these may be asked at every look:

- step time and loss: how often a run with the flag is above one without it, less a half (Mann and Whitney, Annals of
  Mathematical Statistics 18, 1947). If the flag does nothing, or just what the margin allows, all orders within a block
  are equally likely, so that the number is as likely positive as negative, which is what
  :mod:`esper.evaluation.sequential` needs. Ranks do not mind that a few machines are very slow.
- errors and leaks: the difference of the rates, in [-1, 1]. Whoever bets a part of what he has on more than the margin,
  at odds that are fair for the margin, will ever hold ``1 / alpha`` times as much with a chance of at most ``alpha`` if
  the difference is not above it (Waudby-Smith and Ramdas, Journal of the Royal Statistical Society B 86, 2024).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from esper.evaluation.rollout.health import ERRORS, LEAKS, LOSS, STEP_TIME, Unit
from esper.evaluation.rollout.plan import Criteria
from esper.evaluation.sequential import log_evidence

MEASURES = (STEP_TIME, LOSS, ERRORS, LEAKS)

# B blocks, L bets, P pairs within blocks
_BETS_L = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.9])
_MOST_WITHOUT = 9
_LEAST_WITH = 3
_BISECTIONS = 40


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure, in shares: 0.1 is a tenth worse, or ten points more of the runs.

    Args:
        measure: its name.
        blocks: that were compared.
        worse_by: the flag's doing as it looks; None without blocks.
        at_least: by how much it is worse for certain; None if nothing is.
        margin: that is allowed.
    """

    measure: str
    blocks: int
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

    def __str__(self) -> str:
        if self.worse_by is None:
            return f"{self.measure}: no runs to compare yet"
        surely = "nothing is certain" if self.at_least is None else f"{100 * self.at_least:+.1f} % at least"
        seems = f"{self.measure} {100 * self.worse_by:+.1f} % with the flag on"
        return f"{seems} ({surely}, {self.blocks} blocks of runs), allowed {100 * self.margin:g} %"


Block = tuple[list[Unit], list[Unit]]


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
    return [_compared(measure, blocks(of_measure[measure]), criteria, alpha) for measure in MEASURES]


@dataclass
class _Waiting:
    """Of one kind: runs that are in no block yet."""

    with_flag: list[Unit] = field(default_factory=list)
    without: list[Unit] = field(default_factory=list)
    left_over: list[Unit] = field(default_factory=list)

    def take(self, unit: Unit) -> Block | None:
        """The block that a run completes.

        Of many runs without the flag the latest are taken. The others are left over for the time when hardly any come.
        """
        (self.with_flag if unit.is_on else self.without).append(unit)
        if not self.with_flag:
            return None
        if not self.without and self.left_over and len(self.with_flag) >= _LEAST_WITH:
            self.without = [self.left_over.pop() for _ in self.left_over[-_MOST_WITHOUT:]][::-1]
        if not self.without:
            return None
        block = self.with_flag, self.without[-_MOST_WITHOUT:]
        self.left_over += self.without[:-_MOST_WITHOUT]
        self.with_flag, self.without = [], []
        return block


def blocks(units: Iterable[Unit]) -> list[Block]:
    """Runs with the flag, and those without it that they are compared with."""
    waiting: dict[str, _Waiting] = defaultdict(_Waiting)
    return [block for unit in units if (block := waiting[unit.kind].take(unit)) is not None]


def _compared(measure: str, compared: list[Block], criteria: Criteria, alpha: float) -> Comparison:
    is_rate = measure in (ERRORS, LEAKS)
    margin = criteria.more_errors if is_rate else criteria.worse_by
    if not compared:
        return Comparison(measure, 0, None, None, margin)
    if is_rate:
        rates_B = np.array([_mean(on) - _mean(off) for on, off in compared])
        at_least = bound_of_rates(rates_B, alpha)
        return Comparison(measure, len(rates_B), float(rates_B.mean()), at_least, margin)
    differences = _differences(compared, in_levels=measure == LOSS)
    seems = float(np.median([median(each) for each in differences]))
    at_least = bound_of_differences(differences, alpha, float(np.log1p(margin)) if measure == STEP_TIME else margin)
    if measure == STEP_TIME:
        seems, at_least = float(np.expm1(seems)), None if at_least is None else float(np.expm1(at_least))
    return Comparison(measure, len(compared), seems, at_least, margin)


def _mean(units: list[Unit]) -> float:
    return sum(unit.value for unit in units) / len(units)


def _differences(compared: list[Block], *, in_levels: bool) -> list[NDArray[np.float64]]:
    """Of all pairs within each block: of logarithms, or in units of what runs of the kind come to without the flag.

    A loss may be 0 or below, where there are no logarithms.
    """
    without: dict[str, list[float]] = defaultdict(list)
    for _, off in compared:
        without[off[0].kind] += [abs(unit.value) for unit in off]
    level = {kind: median(values) or 1.0 for kind, values in without.items()}

    def scaled(units: list[Unit]) -> NDArray[np.float64]:
        values = np.array([unit.value for unit in units])
        return values / level[units[0].kind] if in_levels else np.log(values)

    return [np.subtract.outer(scaled(on), scaled(off)).ravel() for on, off in compared]


def bound_of_differences(differences: list[NDArray[np.float64]], alpha: float, margin: float) -> float | None:
    """What the typical difference is above, for certain, at every look at once; None if nothing is certain.

    Args:
        differences: of all pairs of each block, in the order in which the blocks came.
        alpha: chance that it is ever wrong.
        margin: that is asked about: the bound is above it only if the margin itself is ruled out. What is ruled out may
            have gaps elsewhere.
    """
    all_P, sizes_B = np.concatenate(differences), np.array([len(each) for each in differences])
    block_P = np.repeat(np.arange(len(sizes_B)), sizes_B)

    def is_ruled_out(shift: float) -> bool:
        above_B = np.bincount(block_P, np.sign(all_P - shift)) / (2 * sizes_B)
        return bool(np.any((log_evidence(above_B) > np.log(1 / alpha)) & (np.cumsum(above_B) > 0)))

    lowest, highest = min(float(all_P.min()) - 1e-9, margin), max(float(all_P.max()), margin)
    if is_ruled_out(margin):
        return _last_ruled_out(is_ruled_out, margin, highest)
    return _last_ruled_out(is_ruled_out, lowest, margin) if is_ruled_out(lowest) else None


def bound_of_rates(rates_B: NDArray[np.float64], alpha: float) -> float | None:
    """What the mean is above, for certain, at every look at once; None if nothing is certain.

    Args:
        rates_B: ``[blocks]`` in [-1, 1], in the order in which they came.
        alpha: chance that it is ever wrong.
    """

    def is_ruled_out(mean: float) -> bool:
        gains_LB = np.log1p(_BETS_L[:, None] / (1 + mean) * (rates_B - mean))
        held_B = np.logaddexp.reduce(np.cumsum(gains_LB, axis=1), axis=0) - np.log(len(_BETS_L))
        return bool(held_B.max() > np.log(1 / alpha))

    lowest = -1 + 1e-9
    return _last_ruled_out(is_ruled_out, lowest, 1.0) if is_ruled_out(lowest) else None


def _last_ruled_out(is_ruled_out: Callable[[float], bool], low: float, high: float) -> float:
    """The end of what is ruled out, between a number that is and one that is not."""
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_ruled_out(middle) else (low, middle)
    return low
