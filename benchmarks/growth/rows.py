"""Every row of the tables: how it is computed, what it follows, what is searched for it, where and how often."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.growth import control_rows, growing_rows
from benchmarks.growth.cases import Case
from benchmarks.growth.cells import Job
from benchmarks.growth.peers import missing
from esper.cli.options import TEXT
from esper.evaluation.training import SCHEDULES, Recipe

SCHEDULE_OF_ONE = "cosine"
"""Of rows whose schedule is not searched."""
HEADLINE_SEEDS, SEEDS = 10, 5
SECONDARY_CASES = ("digits", "mnist1d")


@dataclass(frozen=True)
class RowKind:
    """A row.

    Args:
        compute: its cell.
        follows: the row whose FLOPs, size, grafts or steps it is given; None where it grows by itself.
        schedules: searched, each with several rates; none takes the shipped recipe.
        is_headline: whether it is computed for every case, and on more seeds.
        begins_trained: whether its host was trained before.
        obstacle: why it cannot be computed for a case on this machine; None if it can.
    """

    compute: Callable[[Job], dict[str, Any]]
    follows: str | None = None
    schedules: tuple[str, ...] = (SCHEDULE_OF_ONE,)
    is_headline: bool = False
    begins_trained: bool = False
    obstacle: Callable[[Case], str | None] = lambda case: None

    @property
    def meaning(self) -> str:
        """What it is, in a sentence."""
        return " ".join((self.compute.__doc__ or "").split("\n")[0].split())

    @property
    def seeds(self) -> tuple[int, ...]:
        """On which it is computed unless told otherwise."""
        return tuple(range(HEADLINE_SEEDS if self.is_headline else SEEDS))


def shipped(case: Case) -> Recipe:
    """What ``esper run`` takes unless told otherwise."""
    return Recipe(case.pace.lr, case.pace.schedule)


def _unless_perceptron(case: Case) -> str | None:
    is_chain = case.host == "mlp" and not case.data.startswith(TEXT)
    return None if is_chain else "it takes a plain chain of Linear layers"


def _unless_there(name: str, case: Case) -> str | None:
    return missing(name) or _unless_perceptron(case)


FULL = tuple(SCHEDULES)

ROWS: dict[str, RowKind] = {
    "grown": RowKind(growing_rows.grown, None, FULL, is_headline=True),
    "grown_default": RowKind(growing_rows.grown, None, (), is_headline=True),
    "host_on": RowKind(control_rows.host_on, "grown", FULL, is_headline=True),
    "static": RowKind(control_rows.static, "grown", FULL, is_headline=True),
    "host_on_epochs": RowKind(control_rows.host_on_epochs, "grown"),
    "static_epochs": RowKind(control_rows.static_epochs, "grown"),
    "static_ceiling": RowKind(control_rows.static_ceiling, "grown"),
    "static_shape": RowKind(control_rows.static_shape, "grown"),
    "widened": RowKind(control_rows.widened, "grown", obstacle=_unless_perceptron),
    "planted": RowKind(control_rows.planted, "grown"),
    "adapters": RowKind(control_rows.adapters, "grown"),
    "ungated": RowKind(growing_rows.ungated),
    "placebo": RowKind(growing_rows.placebo),
    "random_frozen": RowKind(growing_rows.random_frozen),
    "random_place": RowKind(growing_rows.random_place),
    "sunk_grown": RowKind(growing_rows.sunk_grown, None, FULL, is_headline=True, begins_trained=True),
    "sunk_host_on": RowKind(control_rows.sunk_host_on, "sunk_grown", FULL, is_headline=True, begins_trained=True),
    "sunk_static": RowKind(control_rows.sunk_static, "sunk_grown", FULL, is_headline=True),
    "sunk_lora": RowKind(
        control_rows.sunk_lora, "sunk_grown", begins_trained=True, obstacle=lambda case: missing("lora")
    ),
    "wide_grown": RowKind(growing_rows.wide_grown),
    "wide_host_on": RowKind(control_rows.wide_host_on, "wide_grown"),
    **{
        name: RowKind(control_rows.peer, "grown", obstacle=partial(_unless_there, name))
        for name in ("lora", "gromo", "perforated")
    },
}
"""By name, in the order of the tables."""

HEADLINE = tuple(name for name, kind in ROWS.items() if kind.is_headline)
"""Rows of every case."""


def compared_with(name: str) -> str:
    """The grown row that a row is compared with: the one whose host and start it shares."""
    prefix = name.partition("_")[0]
    return f"{prefix}_grown" if prefix in ("sunk", "wide") else "grown"


MAIN = tuple(name for name in HEADLINE if compared_with(name) == "grown")
"""Rows of the main table of every case."""
