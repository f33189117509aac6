"""Reading a run directory: all that it holds, and in plain words what is missing or damaged in it."""

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from esper.contracts.errors import ConfigError
from esper.observability.shapes import (
    NEEDED,
    OPTIONAL,
    PROGRESS_NEEDED,
    RESULT_NEEDED,
    RESULT_OPTIONAL,
    Shape,
    misfit,
)

T = TypeVar("T")
Status = Literal["finished", "trained", "damaged", "unfinished"]
"""A run that is finished has a result, one that is damaged has one that cannot be read. A trained one has done all its
steps and was ended, but has no result: a session of one's own never writes one, ``esper run`` after its controls."""

Event = dict[str, Any]
Numbered = tuple[int, Event]

CONFIG, RESULT, PROGRESS, AUDIT, METRICS = "config.yaml", "result.json", "progress.json", "audit.jsonl", "metrics.jsonl"
SAMPLES = "samples.safetensors"

_UNKNOWN = {
    CONFIG: "the options of the run are not known",
    RESULT: "what the run ended with is not known",
    PROGRESS: "which controls were finished is not known",
    AUDIT: "what happened to seeds is not known",
    METRICS: "there are no learning curves and no telemetry",
}
"""What it means for the reader that a file cannot be used."""

_TRACES = frozenset({RESULT, PROGRESS, AUDIT, METRICS, "checkpoints"})
"""Where one of them is, the run has begun, so that there must be logs."""

_NAMED_LINES = 5


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


def read(directory: Path) -> Record:
    """Read a run directory. Damage in it is told by ``faults`` and never raises.

    Raises:
        ConfigError: if there is no such directory, it cannot be read, or it holds nothing of a run.
    """
    directory = Path(directory)
    names = _names_in(directory)
    if names.isdisjoint(_UNKNOWN):
        raise ConfigError(
            f"{directory} holds nothing of a run. A run directory has {CONFIG}, {METRICS}, {AUDIT} and, once the run "
            f"is finished, {RESULT}."
        )
    faults: list[str] = []
    config = None
    if names & {CONFIG, RESULT, PROGRESS}:  # a session of one's own writes none of them
        config = _or_fault(lambda: _config(directory), None, faults)
    result = _or_fault(lambda: _result(directory), None, faults)
    progress: dict[str, Any] = _or_fault(lambda: _progress(directory), {}, faults)
    audit: list[Numbered] = []
    metrics: list[Numbered] = []
    if names & _TRACES:
        is_finished = RESULT in names
        audit = _or_fault(lambda: _log(directory / AUDIT, faults, must_tell=is_finished), [], faults)
        metrics = _or_fault(lambda: _log(directory / METRICS, faults, must_tell=is_finished), [], faults)
    return Record(
        directory=directory,
        config=config,
        result=result,
        progress=progress,
        audit=audit,
        epochs=[one for one in metrics if one[1]["event"] == "epoch"],
        telemetry=[one for one in metrics if one[1]["event"] == "telemetry"],
        vitals=[one for one in metrics if one[1]["event"] == "vitals"],
        faults=faults,
    )


def _names_in(directory: Path) -> set[str]:
    if os.path.isfile(directory):
        quoted = shlex.quote(str(directory.parent))
        raise ConfigError(f"{directory} is a file. Name the directory of a run instead, for example {quoted}.")
    if not os.path.isdir(directory):  # no name is too long for it
        raise ConfigError(f"There is no directory {directory}. Name the directory of a run, for example runs/digits-0.")
    try:
        return set(os.listdir(directory))
    except OSError as error:
        raise ConfigError(f"{directory} cannot be read: {error.strerror}. Allow reading it.") from error


class _DamageError(Exception):
    """A file that cannot be used, in words for the reader."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__(f"{name} {how}: {_UNKNOWN[name]}.")


def _or_fault(reading: Callable[[], T], otherwise: T, faults: list[str]) -> T:
    try:
        return reading()
    except _DamageError as damage:
        faults.append(str(damage))
        return otherwise


def _config(directory: Path) -> dict[str, Any] | None:
    content = _bytes(directory / CONFIG)
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("PyYAML is not installed: pip install 'esper-morphogenetic[run]'.") from error
    try:
        loaded = yaml.safe_load(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _DamageError(CONFIG, "is not valid YAML") from error
    if not _has_names(loaded):
        raise _DamageError(CONFIG, "is no mapping of options")
    if not _has_names(loaded.get("growth", {})):
        raise _DamageError(CONFIG, "has no mapping 'growth'")
    return dict(loaded)


def _has_names(loaded: Any) -> bool:
    return isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)


def read_result(directory: Path) -> dict[str, Any] | None:
    """The result alone; None if it is missing or damaged."""
    return _or_fault(lambda: _result(Path(directory)), None, [])


def _result(directory: Path) -> dict[str, Any] | None:
    if not os.path.exists(directory / RESULT):
        return None
    loaded = _object(directory / RESULT)
    wrong = misfit(loaded, RESULT_NEEDED, RESULT_OPTIONAL)
    if wrong is not None:
        raise _DamageError(RESULT, f"is damaged in {wrong!r}" if wrong in loaded else f"lacks {wrong!r}")
    return loaded


def _progress(directory: Path) -> dict[str, Any]:
    if not os.path.exists(directory / PROGRESS):
        return {}
    loaded = _object(directory / PROGRESS)
    wrong = misfit(loaded, PROGRESS_NEEDED, {})
    if wrong is not None:
        raise _DamageError(PROGRESS, f"is damaged in {wrong!r}" if wrong in loaded else f"lacks {wrong!r}")
    return loaded


def _object(path: Path) -> dict[str, Any]:
    content = _bytes(path)
    loaded = _loaded(content)
    if loaded is None:
        raise _DamageError(path.name, "is no JSON object" if content.strip() else "is empty")
    return loaded


def _log(path: Path, faults: list[str], *, must_tell: bool) -> list[Numbered]:
    """The lines of a log that are whole; the others are named.

    Args:
        path: of the log.
        faults: is added to.
        must_tell: whether an empty log is a fault: one of a run that has just begun is none.
    """
    content = _bytes(path)
    lines = content.split(b"\n")
    good: list[Numbered] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        event = _loaded(line)
        if event is None or not is_whole(event):
            damaged.append(number)
        else:
            good.append((number, event))
    if damaged and damaged[-1] == len(lines):  # no end of line follows it
        faults.append(f"{path.name} ends in the middle of line {damaged.pop()}, which was left out.")
    if damaged:
        told = "it" if len(damaged) == 1 else "they"
        faults.append(f"{path.name} {_named(damaged)} left out: what {told} told is missing here.")
    if not good and (must_tell or content):
        faults.append(f"{path.name} holds nothing that can be read: {_UNKNOWN[path.name]}.")
    return good


def _named(lines: list[int]) -> str:
    """Line 17 is damaged and was; lines 17, 18 and 3 others are damaged and were."""
    if len(lines) == 1:
        return f"line {lines[0]} is damaged and was"
    shown, rest = lines[:_NAMED_LINES], len(lines) - _NAMED_LINES
    names = [str(number) for number in shown] + ([f"{rest} more"] if rest > 0 else [])
    return f"lines {', '.join(names[:-1])} and {names[-1]} are damaged and were"


def is_whole(event: Event) -> bool:
    """Whether a line has all fields of its kind, each of its shape."""
    kind = event.get("event")
    if not isinstance(kind, str):
        return False
    nothing: Mapping[str, Shape] = {}
    return misfit(event, NEEDED.get(kind, nothing), OPTIONAL.get(kind, nothing)) is None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _DamageError(path.name, "is missing") from error
    except OSError as error:
        raise _DamageError(path.name, f"cannot be read ({error.strerror})") from error


def _loaded(content: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    try:
        loaded = json.loads(content.decode(), parse_constant=_no_number)
        if b"\\u" in content:
            json.dumps(loaded, ensure_ascii=False).encode()  # half a character cannot be shown
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON.")
