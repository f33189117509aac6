"""What every run on a live page has, wherever it is told."""

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from esper.observability.files import AUDIT, METRICS, Numbered
from esper.observability.log import Log
from esper.observability.metrics.fold import RunState
from esper.observability.record import Reading, Record

MOST_CELLS = 1_200_000
"""Seeds times boundaries that are kept of a run: 120 boundaries of 10,000 seeds. Then every second boundary goes."""


PATIENCE_S = 5.0
"""For which a line may be half written."""


@dataclass
class Asked:
    """A command that was sent from here.

    Args:
        id: of the command.
        what: in words.
        time: when, in seconds since 1970.
        is_accepted: whether it was carried out; None while the run has not answered.
        reason: why not.
        step: of the run, when it answered.
    """

    id: str
    what: str
    time: float
    is_accepted: bool | None = None
    reason: str = ""
    step: int = 0


class Run(Protocol):
    """A run that is followed.

    Attributes:
        id: of it among all runs of the page.
        name: for a reader.
        state: what its lines came to.
        version: rises where anything is new.
        generation: rises where what it has told before counts no more.
    """

    id: str
    name: str
    state: RunState
    version: int
    generation: int

    def open(self) -> None:
        """Keep all that a report needs from now on."""

    def close(self) -> None:
        """Nobody reads it any more."""

    @property
    def record(self) -> Record:
        """Its record, once it is opened."""


class Source(Protocol):
    """Where runs are told.

    Attributes:
        sent: the last commands that were sent from here, by run.
        lock: held by whoever reads or changes what is known of runs.
    """

    lock: threading.RLock
    sent: dict[str, list[Asked]]

    @property
    def notes(self) -> list[str]:
        """What a reader must know of all of them."""

    def look(self, opened: Collection[str]) -> list[Run]:
        """All runs; what is new was read, of those that are opened at once."""


@dataclass
class DirectoryRun:
    """A run that is read from its directory.

    Args:
        directory: which; it may hold nothing yet.
    """

    directory: Path
    id: str = field(init=False)
    name: str = field(init=False)
    version: int = 0
    generation: int = 0

    def __post_init__(self) -> None:
        self.id, self.name = str(self.directory), self.directory.absolute().name
        self._reading: Reading | None = None
        self._begin()

    def _begin(self) -> None:
        self.state = RunState(self.name)
        skipped = (b'{"event": "telemetry"',)
        self._logs = Log(self.directory / AUDIT), Log(self.directory / METRICS, skipped)

    def look(self) -> None:
        """Read what is new."""
        news = [log.look() for log in self._logs]
        if any(log.is_anew and self.state.last_seen is not None for log in self._logs):
            self._begin()
            news = [log.look() for log in self._logs]
        found: list[Numbered] = [one for lines in news for one in lines or []]
        for _, line in sorted(found, key=lambda one: one[1].get("time") or 0.0):
            self.state.hear(line)
        is_new = any(lines is not None for lines in news)
        if self._reading is not None:
            is_new |= self._look_closely(self._reading)
        self.version += is_new

    def _look_closely(self, reading: Reading) -> bool:
        before = reading.generation
        is_new = reading.look()
        self.generation += reading.generation != before
        return is_new

    def open(self) -> None:
        """Keep all that a report needs from now on."""
        if self._reading is None:
            self._reading = Reading(self.directory, MOST_CELLS, PATIENCE_S)
            self._look_closely(self._reading)

    def close(self) -> None:
        """Nobody reads it any more."""
        self._reading = None

    @property
    def record(self) -> Record:
        """Its record, once it is opened."""
        assert self._reading is not None
        return self._reading.record
