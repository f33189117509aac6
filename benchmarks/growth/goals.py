"""What a benchmark set out to show, and whether its tables show it; what they do not show stays in the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from benchmarks.growth.claims import interval
from benchmarks.growth.tables import shown

Rows = Mapping[str, Any]


class Goal(Protocol):
    """Something to show of a grown row and another one of a case."""

    @property
    def case(self) -> str:
        """Of the tables."""
        ...

    @property
    def grown(self) -> str:
        """The row that grows."""
        ...

    @property
    def against(self) -> str:
        """The row beside it."""
        ...

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """What is asked, what was found, and whether it is met, by the tables of the rows."""
        ...


@dataclass(frozen=True)
class Better:
    """The grown run has a lower test loss on every seed, by at least so many nats."""

    case: str
    grown: str
    against: str
    by: float

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Least gain of a seed against ``by``."""
        gains = _gains(rows, self.grown, self.against)
        won = sum(gain > 0 and gain >= self.by for gain in gains)
        asked = f"better by {self.by:g} nats on every seed" if self.by else "better on every seed"
        found = f"{shown(interval(gains), '+.3f')}, {won} of {len(gains)} seeds"
        return asked, found, won == len(gains)


@dataclass(frozen=True)
class NoWorse:
    """The grown run's mean test loss is at most so many nats above."""

    case: str
    grown: str
    against: str
    within: float

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Mean gain against ``within``."""
        gains = _gains(rows, self.grown, self.against)
        found = f"{shown(interval(gains), '+.3f')}, {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
        return f"at most {self.within:g} nats worse", found, fmean(gains) >= -self.within


@dataclass(frozen=True)
class Refused:
    """Nothing grows, for a small share of the FLOPs and of the loss."""

    case: str
    grown: str
    against: str
    flops: float = 0.03
    loss: float = 0.003

    def judged(self, rows: Rows) -> tuple[str, str, bool]:
        """Share of arms and judging, and mean loss relative to the other row."""
        grown, other = rows[self.grown], rows[self.against]
        share = grown["share_of_arms_and_judging"][0]
        lost = -fmean(_gains(rows, self.grown, self.against)) / other["loss"][0]
        asked = f"refused for {self.flops:.0%} of the FLOPs and {self.loss:.1%} of the loss at most"
        found = f"grew on {grown['kept']} of {grown['seeds']} seeds, {share:.1%} of the FLOPs, {lost:+.2%} of the loss"
        return asked, found, grown["kept"] == 0 and share <= self.flops and lost <= self.loss


def told(goals: Sequence[Goal], results: Mapping[str, Any]) -> str:
    """Goals as a table, of ``results`` as :func:`benchmarks.growth.results.collected` gives them; gains are in nats."""
    lines = ["| case | row | beside | asked | found | met |", "|---|---|---|---|---|---|"]
    for goal in goals:
        rows = _rows(results, goal)
        if rows is None:
            lines.append(f"| {goal.case} | {goal.grown} | {goal.against} | | not computed | no |")
            continue
        asked, found, is_met = goal.judged(rows)
        lines.append(
            f"| {goal.case} | {goal.grown} | {goal.against} | {asked} | {found} | {'yes' if is_met else 'no'} |"
        )
    return "\n".join(lines)


def _rows(results: Mapping[str, Any], goal: Goal) -> Rows | None:
    """The table that holds both rows."""
    tables = [results["tasks"].get(goal.case, {}), *results["others"].get(goal.case, {}).values()]
    return next((table for table in tables if goal.grown in table and goal.against in table), None)


def _gains(rows: Rows, grown: str, against: str) -> list[float]:
    """Nats by which the grown run is better, seed by seed; a loss that is not finite is worse than any."""
    losses = [{seed: cell["test_loss"] for seed, cell in rows[name]["by_seed"].items()} for name in (grown, against)]
    infinite = float("inf")
    return [
        (infinite if other is None else other) - (infinite if own is None else own)
        for own, other in ((losses[0][seed], losses[1][seed]) for seed in losses[1] if seed in losses[0])
    ]
