"""Runs as their directories tell them."""

import time
from collections.abc import Container
from pathlib import Path

from esper.contracts.errors import ConfigError
from esper.evaluation.rollout.health import RunHealth
from esper.evaluation.rollout.lines import health
from esper.observability.files import AUDIT, METRICS, RESULT
from esper.observability.record import Record, read


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
                told = _health(read(directory), flag)
            except ConfigError:  # it has just gone, or may not be read
                continue
            if told is not None and told.began >= since:
                found.append(told)
        return sorted(found, key=lambda told: told.began)

    def close(self) -> None:
        """There is nothing to let go."""


def _health(record: Record, flag: str) -> RunHealth | None:
    metrics = [line for _, line in sorted((*record.epochs, *record.vitals), key=lambda numbered: numbered[0])]
    audit = [line for _, line in record.audit]
    return health(record.directory.name, (audit, metrics), _fault(record), flag, time.time())


def _fault(record: Record) -> str | None:
    """What is damaged. A log that ends within a line is not, while the run goes on or was killed."""
    has_ended = bool(record.of("finished"))
    faults = record.faults_of(AUDIT, METRICS, RESULT)
    return next((fault for fault in faults if has_ended or "ends in the middle of line" not in fault), None)
