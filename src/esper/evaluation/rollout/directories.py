"""Runs as their directories tell them."""

import time
from collections.abc import Container
from itertools import pairwise
from pathlib import Path
from typing import Any

from esper.contracts.errors import ConfigError
from esper.evaluation.rollout.health import Point, RunHealth
from esper.observability.record import AUDIT, METRICS, RESULT, Record, read

AHEAD_S = 300.0
"""Clocks may differ by so much: a time that is later is wrong."""

_TROUBLE = ("emergency", "rollback", "fault")


class RunDirectories:
    """The runs whose directories lie in one.

    Args:
        root: as ``runs``; it need not exist yet.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    def runs(self, flag: str, since: float, known: Container[str]) -> list[RunHealth]:
        """See :class:`esper.evaluation.rollout.health.Source`."""
        found = []
        for directory in sorted(path for path in self._root.iterdir() if (path / AUDIT).is_file()):
            if directory.name in known:
                continue
            try:
                health = told(read(directory), flag, time.time())
            except ConfigError:  # it has just gone, or may not be read
                continue
            if health is not None and health.began >= since:
                found.append(health)
        return sorted(found, key=lambda health: health.began)

    def close(self) -> None:
        """There is nothing to let go."""


def told(record: Record, flag: str, now: float) -> RunHealth | None:
    """The health of a run; None if it has not recorded the flag.

    Args:
        record: of its directory.
        flag: name of the flag.
        now: seconds since 1970.
    """
    lines = [line for _, line in (*record.audit, *record.epochs)]
    resolved: dict[str, Any] = next((line["flags"] for _, line in record.of("flags")), {})
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    if flag not in resolved or not times:
        return None
    model = next((line for _, line in record.of("model")), {})
    end = next((line for _, line in reversed(record.of("finished"))), None)
    points = [Point(line["time"], line["step"], line.get("memory_bytes")) for _, line in record.epochs]
    return RunHealth(
        run=record.directory.name,
        kind=_kind(model),
        is_on=bool(resolved[flag]["is_on"]),
        began=min(times),
        last=max(times),
        points=tuple(points),
        is_finished=end is not None,
        loss=None if end is None else end["select_loss"],
        trouble=_trouble(record, end),
        damage=_damage(record, end, times, now),
    )


def _kind(model: dict[str, Any]) -> str:
    return f"{model.get('type')} of {model.get('parameters')} parameters, {model.get('planned_steps')} steps"


def _trouble(record: Record, end: dict[str, Any] | None) -> str | None:
    if harmed := record.of(*_TROUBLE):
        _, line = harmed[0]
        told = line.get("reason", "values were not finite")
        return f"{line['event']} at step {line['step']}: {told}"
    for _, line in record.epochs:
        if line["train_loss"] is None or line["val_loss"] is None:
            return f"its loss at step {line['step']} is not finite"
    return "its loss at the end is not finite" if end is not None and end["select_loss"] is None else None


def _damage(record: Record, end: dict[str, Any] | None, times: list[float], now: float) -> str | None:
    """A log that ends within a line is none, while the run goes on or was killed."""
    for fault in record.faults_of(AUDIT, METRICS, RESULT):
        if end is not None or "ends in the middle of line" not in fault:
            return fault
    lines = len(record.audit) + len(record.epochs)
    if len(times) < lines:
        return "a line has no time"
    if max(times) > now + AHEAD_S:
        return f"a line is from the future: {max(times) - now:.0f} s from now"
    for log in (record.audit, record.epochs):
        for (_, before), (number, after) in pairwise(log):
            if after["time"] < before["time"] - AHEAD_S:
                return f"line {number} is {before['time'] - after['time']:.0f} s older than the one before it"
    return "it has finished, and tells no boundary" if end is not None and not record.epochs else None
