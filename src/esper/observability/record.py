"""A run as its directory or a message bus tells it: what is known, and in plain words what is missing or damaged."""

import os
import shlex
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from esper.contracts.errors import ConfigError
from esper.observability import files
from esper.observability.files import AUDIT, CONFIG, METRICS, PROGRESS, RESULT, Document, Numbered
from esper.observability.log import Log

Status = Literal["finished", "trained", "damaged", "unfinished"]
"""A run that is finished has a result, one that is damaged has one that cannot be read. A trained one has done all its
steps and was ended, but has no result: a session of one's own never writes one, ``esper run`` after its controls."""

SAMPLES = "samples.safetensors"

_TRACES = frozenset({RESULT, PROGRESS, AUDIT, METRICS, "checkpoints"})
"""Where one of them is, the run has begun, so that there must be logs."""


@dataclass(frozen=True)
class Record:
    """A run as its directory tells it.

    Args:
        directory: where it lies.
        config: ``config.yaml``; None if it is missing or damaged.
        result: ``result.json``; None if the run is unfinished, or if it is damaged.
        progress: ``progress.json``, which only an unfinished run has; empty otherwise.
        audit: events of ``audit.jsonl`` with the numbers of their lines, from 1.
        epochs: lines of the kind ``epoch`` of ``metrics.jsonl``, likewise.
        telemetry: lines of the kind ``telemetry``, likewise.
        vitals: lines of the kind ``vitals``, likewise.
        faults: what is missing or damaged, in plain words. That a run is unfinished is none.
        every: of how many lines of telemetry one was kept.
        is_afar: whether a bus tells it: its directory is not at hand, and ``directory`` is only its name.
    """

    directory: Path
    config: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    audit: list[Numbered] = field(default_factory=list)
    epochs: list[Numbered] = field(default_factory=list)
    telemetry: list[Numbered] = field(default_factory=list)
    vitals: list[Numbered] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    every: int = 1
    is_afar: bool = False

    @property
    def status(self) -> Status:
        """How far the run came."""
        if self.result is not None:
            return "finished"
        if self.faults_of(RESULT):
            return "damaged"
        return "trained" if self.of("finished") else "unfinished"

    @property
    def has_begun(self) -> bool:
        """Whether anything but its options is there."""
        told = (self.result, self.progress, self.audit, self.epochs, self.telemetry)
        return any(told) or len(self.faults) > len(self.faults_of(CONFIG))

    @property
    def is_of_own_loop(self) -> bool:
        """Whether a session of one's own wrote it: one has neither options nor a result."""
        return self.config is None and self.result is None and not self.faults_of(CONFIG, RESULT, PROGRESS)

    def faults_of(self, *files: str) -> list[str]:
        """Faults of these files."""
        return [fault for fault in self.faults if fault.startswith(files)]

    def of(self, *kinds: str) -> list[Numbered]:
        """Audit events of these kinds, in order."""
        return [one for one in self.audit if one[1]["event"] in kinds]


class Lines:
    """Lines of a run's logs, sorted into what a record holds.

    Args:
        most_cells: lines of telemetry are kept as long as seeds times boundaries are no more; then every second one
            goes, and their columns are kept in less memory. None keeps all of them as they came.
    """

    def __init__(self, most_cells: int | None = None) -> None:
        self._most_cells = most_cells
        self.audit: list[Numbered] = []
        self.forget_metrics()

    def forget_metrics(self) -> None:
        """Begin anew with ``metrics.jsonl``."""
        self.epochs: list[Numbered] = []
        self.telemetry: list[Numbered] = []
        self.vitals: list[Numbered] = []
        self.every, self._boundaries = 1, 0

    def add_metrics(self, one: Numbered) -> None:
        """Take in a line of ``metrics.jsonl``."""
        if one[1]["event"] == "epoch":
            self.epochs.append(one)
        elif one[1]["event"] == "vitals":
            self.vitals.append(one)
        elif one[1]["event"] == "telemetry":
            self._add_telemetry(one)

    def _add_telemetry(self, one: Numbered) -> None:
        number, self._boundaries = self._boundaries, self._boundaries + 1
        if self._most_cells is None:
            self.telemetry.append(one)
        elif number % self.every == 0:
            seeds = sum(_longest(place) for place in one[1]["places"].values())
            if (len(self.telemetry) + 1) * seeds > self._most_cells and len(self.telemetry) > 1:
                self.telemetry, self.every = self.telemetry[::2], 2 * self.every
                if number % self.every:
                    return
            places = {name: _packed(place) for name, place in one[1]["places"].items()}
            self.telemetry.append((one[0], {**one[1], "places": places}))


class Reading:
    """A run directory that is looked at again and again. Damage in it is told by the record and never raises.

    Args:
        directory: which; it may hold nothing yet, and may go.
        most_cells: as of :class:`Lines`.
        patience_s: for which the last line of a log may go without an end.

    Attributes:
        generation: rises where a log was replaced, so that what was read before counts no more.
    """

    def __init__(self, directory: Path, most_cells: int | None = None, patience_s: float = 0.0) -> None:
        self.directory, self._patience_s = directory, patience_s
        self._config = Document(directory / CONFIG, files.config, None)
        self._result = Document(directory / RESULT, files.result, None)
        self._progress: Document[dict[str, Any]] = Document(directory / PROGRESS, files.progress, {})
        self._audit, self._metrics = Log(directory / AUDIT), Log(directory / METRICS)
        self._lines = Lines(most_cells)
        self._names: set[str] = set()
        self._is_gone = False
        self._faults: list[str] = []
        self.generation = 0

    def look(self) -> bool:
        """Read what is new; whether anything was."""
        names = _names_in(self.directory)
        self._is_gone, was_gone = bool(self._names) and not os.path.isdir(self.directory), self._is_gone
        if self._is_gone:  # what was read is all that is left of it
            return not was_gone
        is_new = names != self._names or was_gone
        self._names = names
        for document in (self._config, self._result, self._progress):
            is_new |= document.look()
        audit, metrics = self._audit.look(), self._metrics.look()
        if self._audit.is_anew:
            self._lines.audit = []
        if self._metrics.is_anew:
            self._lines.forget_metrics()
        self._lines.audit.extend(audit or [])
        self.generation += self._audit.is_anew or self._metrics.is_anew
        for one in metrics or []:
            self._lines.add_metrics(one)
        before, self._faults = self._faults, self._found_faults()
        return is_new or audit is not None or metrics is not None or before != self._faults

    def _found_faults(self) -> list[str]:
        faults: list[str] = []
        if self._names & {CONFIG, RESULT, PROGRESS}:  # a session of one's own writes none of them
            faults += self._config.faults
        faults += self._result.faults + self._progress.faults
        if self._names & _TRACES:
            for log in (self._audit, self._metrics):
                faults += log.faults(must_tell=RESULT in self._names, patience_s=self._patience_s)
        return faults

    @property
    def record(self) -> Record:
        """What is known of the run."""
        gone = [f"{self.directory} is gone: this is what was read before."] if self._is_gone else []
        return Record(
            directory=self.directory,
            config=self._config.value,
            result=self._result.value,
            progress=self._progress.value,
            audit=self._lines.audit,
            epochs=self._lines.epochs,
            telemetry=self._lines.telemetry,
            vitals=self._lines.vitals,
            faults=gone + self._faults,
            every=self._lines.every,
        )


def read(directory: Path) -> Record:
    """Read a run directory. Damage in it is told by ``faults`` and never raises.

    Raises:
        ConfigError: if there is no such directory, it cannot be read, or it holds nothing of a run.
    """
    directory = Path(directory)
    check(directory)
    if not holds_run(directory):
        raise ConfigError(
            f"{directory} holds nothing of a run. A run directory has {CONFIG}, {METRICS}, {AUDIT} and, once the run "
            f"is finished, {RESULT}."
        )
    reading = Reading(directory)
    reading.look()
    return reading.record


def read_result(directory: Path) -> dict[str, Any] | None:
    """The result alone; None if it is missing or damaged."""
    document = Document(Path(directory) / RESULT, files.result, None)
    document.look()
    return document.value


def holds_run(directory: Path) -> bool:
    """Whether a directory holds anything of a run."""
    return not _names_in(directory).isdisjoint(files.UNKNOWN)


def check(directory: Path) -> None:
    """Whether there is such a directory.

    Raises:
        ConfigError: if not, or if it cannot be read.
    """
    if os.path.isfile(directory):
        quoted = shlex.quote(str(directory.parent))
        raise ConfigError(f"{directory} is a file. Name the directory of a run instead, for example {quoted}.")
    if not os.path.isdir(directory):  # no name is too long for it
        raise ConfigError(f"There is no directory {directory}. Name the directory of a run, for example runs/digits-0.")
    try:
        os.listdir(directory)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be read: {error.strerror}. Allow reading it.") from error


def _names_in(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except OSError:
        return set()


def _longest(place: dict[str, Any]) -> int:
    return max((len(column) for name, column in place.items() if name != "awake"), default=0)


def _packed(place: dict[str, Any]) -> dict[str, Any]:
    """Columns with NaN where nothing was measured."""
    return {
        name: column if name == "awake" else array("d", [float("nan") if one is None else one for one in column])
        for name, column in place.items()
    }
