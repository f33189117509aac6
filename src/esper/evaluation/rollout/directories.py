"""Runs as their directories tell them."""

import time
from collections.abc import Container
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
    resolved = [line for _, line in record.of("flags")]
    times = [line["time"] for line in lines if isinstance(line.get("time"), int | float)]
    if not resolved or flag not in resolved[0]["values"] or not times:
        return None
    model = next((line for _, line in record.of("model")), {})
    end = next((line for _, line in reversed(record.of("finished"))), None)
    points = [Point(line["time"], line["step"], line.get("memory_bytes")) for _, line in record.epochs]
    return RunHealth(
        run=record.directory.name,
        kind=_kind(model),
        is_on=bool(resolved[0]["values"][flag]["is_on"]),
        began=min(times),
        last=max(times),
        points=tuple(points),
        is_finished=end is not None,
        loss=None if end is None else end["select_loss"],
        trouble=_trouble(record, end),
        damage=_damage(record, end, times, now),
    )
