"""Two baselines of one machine side by side. They were taken at different times, so nothing here is a verdict."""

from collections.abc import Iterator
from typing import NamedTuple

from esper.contracts.errors import ConfigError
from esper.evaluation.baseline.cells import WHAT, Cell
from esper.evaluation.baseline.performance import CellResult, PerformanceBaseline


class Beside(NamedTuple):
    """One figure in both.

    Attributes:
        cell: of both.
        name: of the figure, with its unit.
        old, new: the figure.
    """

    cell: Cell
    name: str
    old: float
    new: float


def beside(old: PerformanceBaseline, new: PerformanceBaseline) -> list[Beside]:
    """All figures that both have.

    Raises:
        ConfigError: if they are of two machines or settings, or have no cell in common.
    """
    if old.machine_id != new.machine_id:
        raise ConfigError(
            "The baselines are of two machines, whose figures say nothing about each other. On one machine, "
            f"'esper baseline compare --base {(old.commit or 'COMMIT')[:12]}' measures both sides in one run."
        )
    if old.setting != new.setting:
        raise ConfigError(
            f"The baselines are of two settings, {old.setting.device} with {old.setting.threads} threads and "
            f"{new.setting.device} with {new.setting.threads}. Record both with the same --device and --threads."
        )
    news = {one.cell: one for one in new.cells}
    both = [(one, news[one.cell]) for one in old.cells if one.cell in news]
    if not both:
        raise ConfigError("The baselines have no cell in common. Record both with the same --batch-sizes and --seeds.")
    return [row for one, other in both for row in _rows(one, other)]


def _rows(old: CellResult, new: CellResult) -> Iterator[Beside]:
    for what in WHAT:
        for quantile in ("mean", "p50", "p95", "p99"):
            pair = (getattr(one.latency_ms[what], quantile) for one in (old, new))
            yield Beside(old.cell, f"{what} {quantile}, ms", *pair)
    for name in ("samples_per_s", "state_bytes", "host_bytes", "device_bytes"):
        values = getattr(old, name), getattr(new, name)
        if None not in values:
            yield Beside(old.cell, name, *values)
