"""What a benchmark set out to show, and whether its tables show it; what they do not show stays in the table."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.growth.claims import interval
from benchmarks.growth.tables import loss_of, shown, tables_of

Rows = Mapping[str, Any]


@dataclass(frozen=True)
class Goal(ABC):
    """Something to show of a grown row and another one of a case.

    Args:
        case: of the tables.
        grown: the row that grows.
        against: the row beside it.
    """

    case: str
    grown: str
    against: str

    @abstractmethod
    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """What is asked, what was found, and whether it is met, by the tables of the rows."""

    def gains(self, rows: Rows) -> list[float]:
        """Nats by which the grown run is better, seed by seed; a loss that is not finite is worse than any."""
        own, other = (
            {seed: loss_of(cell) for seed, cell in rows[name]["by_seed"].items()} for name in (self.grown, self.against)
        )
        return [other[seed] - own[seed] for seed in other if seed in own]


@dataclass(frozen=True)
class Better(Goal):
    """The grown run has a lower test loss on every seed, by at least so many nats."""

    by: float

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Least gain of a seed against ``by``."""
        gains = self.gains(rows)
        won = sum(gain > 0 and gain >= self.by for gain in gains)
        asked = f"better by {self.by:g} nats on every seed" if self.by else "better on every seed"
        return asked, _found(gains, won), won == len(gains)


@dataclass(frozen=True)
class NoWorse(Goal):
    """The grown run's mean test loss is at most so many nats above."""

    within: float

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Mean gain against ``within``."""
        gains = self.gains(rows)
        found = _found(gains, sum(gain > 0 for gain in gains))
        return f"at most {self.within:g} nats worse", found, fmean(gains) >= -self.within


@dataclass(frozen=True)
class Refused(Goal):
    """Nothing grows, for a small share of the FLOPs and of the loss."""

    flops: float = 0.03
    loss: float = 0.003

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Share of arms and judging, and mean loss relative to the other row."""
        grown, other = rows[self.grown], rows[self.against]
        share = grown["share_of_arms_and_judging"][0]
        lost = -fmean(self.gains(rows)) / other["loss"][0]
        asked = f"refused for {self.flops:.0%} of the FLOPs and {self.loss:.1%} of the loss at most"
        found = f"grew on {grown['kept']} of {grown['seeds']} seeds, {share:.1%} of the FLOPs, {lost:+.2%} of the loss"
        return asked, found, grown["kept"] == 0 and share <= self.flops and lost <= self.loss


def told(goals: Sequence[Goal], results: Mapping[str, Any]) -> str:
    """Goals as a table, of ``results`` as :func:`benchmarks.growth.results.collected` gives them; gains are in nats."""
    lines = ["| case | row | beside | asked | found | met |", "|---|---|---|---|---|---|"]
    for goal in goals:
        both = {goal.grown, goal.against}
        rows = next((table for table in tables_of(results, goal.case) if both <= table.keys()), None)
        if rows is None:
            lines.append(f"| {goal.case} | {goal.grown} | {goal.against} | | not computed | no |")
            continue
        asked, found, is_met = goal.judged(rows)
        lines.append(
            f"| {goal.case} | {goal.grown} | {goal.against} | {asked} | {found} | {'yes' if is_met else 'no'} |"
        )
    return "\n".join(lines)


def _found(gains: Sequence[float], won: int) -> str:
    return f"{shown(interval(gains), '+.3f')}, {won} of {len(gains)} seeds"
