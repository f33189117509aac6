"""What is measured and told together."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch

from esper.evaluation.bench.clock import Spread

BARE, AGAIN = "bare", "bare again"
"""The model without Esper, twice: how far the two are apart is the machine's noise."""


class Goal(NamedTuple):
    """A target."""

    asked: str
    found: str
    is_met: bool


class Section(NamedTuple):
    """A table with its targets.

    Args:
        title: of it.
        rows: values by column, the same in all.
        goals: which of them are asked for.
        points: what a plot shows, by the name of its line: x, and quartiles of y.
    """

    title: str
    rows: Sequence[Mapping[str, str]]
    goals: Sequence[Goal] = ()
    points: Mapping[str, Sequence[tuple[float, Spread]]] = MappingProxyType({})

    def told(self) -> str:
        """As the terminal and documents show it."""
        columns = list(self.rows[0])
        lines = [f"## {self.title}", "", _line(columns), "|" + "---|" * len(columns)]
        lines += [_line(list(row.values())) for row in self.rows]
        if self.goals:
            lines += ["", "| target | found | |", "|---|---|---|"]
            lines += [_line([goal.asked, goal.found, "met" if goal.is_met else "**missed**"]) for goal in self.goals]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        points = {name: [(x, *spread) for x, spread in line] for name, line in self.points.items()}
        goals = [goal._asdict() for goal in self.goals]
        return {"title": self.title, "rows": list(self.rows), "goals": goals, "points": points}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        points = {name: [(x, Spread(*spread)) for x, *spread in line] for name, line in saved.get("points", {}).items()}
        return cls(saved["title"], saved["rows"], [Goal(**goal) for goal in saved["goals"]], points)


class Beside(NamedTuple):
    """Times of something beside those of the bare model, in microseconds."""

    bare: Spread
    ours: Spread
    added: Spread
    share: Spread
    noise: float

    @classmethod
    def of(cls, times: Mapping[str, Sequence[float]], name: str) -> Self:
        """By pairs of measurements that were taken one after the other.

        Args:
            times: of :data:`BARE`, :data:`AGAIN` and ``name``.
            name: whose they are.
        """
        bare, ours = times[BARE], times[name]
        return cls(
            Spread.of(bare),
            Spread.of(ours),
            Spread.of([one - other for one, other in zip(ours, bare, strict=True)]),
            Spread.of([one / other - 1 for one, other in zip(ours, bare, strict=True)]),
            Spread.of([one / other - 1 for one, other in zip(times[AGAIN], bare, strict=True)]).middle,
        )

    def cells(self) -> dict[str, str]:
        """As columns of a table."""
        return {
            "bare": as_time(self.bare.middle),
            "with seeds": as_time(self.ours.middle),
            "added": f"{self.added.middle:+.1f} us",
            "share (quartiles)": f"{self.share.middle:+.1%} ({self.share.low:+.1%} to {self.share.high:+.1%})",
            "bare again": f"{self.noise:+.1%}",
        }


Measure = Callable[[torch.device, bool], Section | None]
"""Takes the device and whether few cases are enough; gives None where it has nothing to measure."""


def as_time(us: float) -> str:
    """Microseconds, readable."""
    return f"{us:.1f} us" if us < 1000 else f"{us / 1000:.2f} ms"


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"`` and the like."""
    return str(dtype).removeprefix("torch.")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
