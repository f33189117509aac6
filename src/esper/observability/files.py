"""The files of a run directory, each looked at again and again: only what is new of a log is read."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

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
Event = dict[str, Any]
Numbered = tuple[int, Event]

CONFIG, RESULT, PROGRESS, AUDIT, METRICS = "config.yaml", "result.json", "progress.json", "audit.jsonl", "metrics.jsonl"

UNKNOWN = {
    CONFIG: "the options of the run are not known",
    RESULT: "what the run ended with is not known",
    PROGRESS: "which controls were finished is not known",
    AUDIT: "what happened to seeds is not known",
    METRICS: "there are no learning curves and no telemetry",
}
"""What it means for the reader that a file cannot be used."""

_NAMED_LINES = 5
_REMEMBERED_BYTES = 512


class DamageError(Exception):
    """A file that cannot be used, in words for the reader."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__(f"{name} {how}: {UNKNOWN[name]}.")


class Document(Generic[T]):
    """A small file that is read as a whole, again where it has changed.

    Args:
        path: of the file.
        load: reads it.
        otherwise: the value where it cannot be used.

    Attributes:
        value: what it holds.
        faults: why it cannot be used, at most one.
    """

    def __init__(self, path: Path, load: Callable[[Path], T], otherwise: T) -> None:
        self._path, self._load, self._otherwise = path, load, otherwise
        self._seen: object = None
        self.value, self.faults = otherwise, list[str]()

    def look(self) -> bool:
        """Read it if it has changed; whether it had."""
        now = _stamp(self._path)
        if now == self._seen:
            return False
        self._seen = now
        try:
            self.value, self.faults = self._load(self._path), []
        except DamageError as damage:
            self.value, self.faults = self._otherwise, [str(damage)]
        return True


class Log:
    """A file of JSON objects, one a line, that grows, or is replaced by another one.

    Args:
        path: of the file.
        skipped: beginnings of lines that nobody wants.

    Attributes:
        is_anew: whether the last look began at the first line, so that what was read before counts no more.
    """

    def __init__(self, path: Path, skipped: tuple[bytes, ...] = ()) -> None:
        self._path, self._skipped = path, skipped
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.is_anew = True
        self._file: object = None
        self._offset, self._lines, self._good = 0, 0, 0
        self._before = b""
        self._half, self._half_since, self._rest = False, 0.0, 0
        self._damaged: list[int] = []
        self._trouble = ""

    def look(self) -> list[Numbered] | None:
        """Whole lines that are new, with their numbers from 1; None if nothing has changed. Damaged ones are named."""
        self.is_anew = False
        before = self._trouble, self._rest, self._offset
        try:
            with self._path.open("rb") as file:
                content = self._new_bytes(file)
        except FileNotFoundError:
            self._fail("is missing")
            content = b""
        except OSError as error:
            self._fail(f"cannot be read ({error.strerror})")
            content = b""
        found = list(self._parsed(content))
        is_changed = self.is_anew or before != (self._trouble, self._rest, self._offset)
        return found if is_changed else None

    def _fail(self, how: str) -> None:
        how = str(DamageError(self._path.name, how))
        if self._trouble != how:
            self._begin_anew()
            self._trouble = how

    def _new_bytes(self, file: Any) -> bytes:
        stat = os.fstat(file.fileno())
        identity = stat.st_dev, stat.st_ino
        if self._file != identity or stat.st_size < self._offset or not self._goes_on(file):
            self._begin_anew()
            self._file = identity
        file.seek(self._offset)
        content: bytes = file.read()
        return content

    def _goes_on(self, file: Any) -> bool:
        """Whether what was read last still stands there."""
        file.seek(self._offset - len(self._before))
        return bool(file.read(len(self._before)) == self._before)

    def _parsed(self, content: bytes) -> Iterator[Numbered]:
        *whole, rest = content.split(b"\n")
        read = len(content) - len(rest)
        self._offset += read
        self._before = (self._before + content[:read][-_REMEMBERED_BYTES:])[-_REMEMBERED_BYTES:]
        if read or len(rest) != self._rest:
            self._half, self._half_since, self._rest = bool(rest.strip()), time.monotonic(), len(rest)
        for line in whole:
            self._lines += 1
            if not line.strip() or line.startswith(self._skipped):
                continue
            event = loaded(line)
            if event is None or not is_whole(event):
                self._damaged.append(self._lines)
            else:
                self._good += 1
                yield self._lines, event

    def faults(self, *, must_tell: bool, patience_s: float) -> list[str]:
        """What is wrong with it.

        Args:
            must_tell: whether an empty log is a fault: one of a run that has just begun is none.
            patience_s: for which the last line may go without an end: it may be written just now.
        """
        if self._trouble:
            return [self._trouble]
        name, said = self._path.name, []
        is_cut = self._half and time.monotonic() - self._half_since >= patience_s
        if is_cut:
            said.append(f"{name} ends in the middle of line {self._lines + 1}, which was left out.")
        if self._damaged:
            told = "it" if len(self._damaged) == 1 else "they"
            said.append(f"{name} {_named(self._damaged)} left out: what {told} told is missing here.")
        if not self._good and (must_tell or is_cut or self._lines):
            said.append(f"{name} holds nothing that can be read: {UNKNOWN[name]}.")
        return said


def config(path: Path) -> dict[str, Any] | None:
    """The options of a run.

    Raises:
        DamageError: if they cannot be used.
        ConfigError: if PyYAML is not installed.
    """
    content = _bytes(path)
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("PyYAML is not installed: pip install 'esper-morphogenetic[run]'.") from error
    try:
        found = yaml.safe_load(content.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamageError(CONFIG, "is not valid YAML") from error
    if not _has_names(found):
        raise DamageError(CONFIG, "is no mapping of options")
    if not _has_names(found.get("growth", {})):
        raise DamageError(CONFIG, "has no mapping 'growth'")
    return dict(found)


def result(path: Path) -> dict[str, Any] | None:
    """What a run came to; None if there is no such file.

    Raises:
        DamageError: if it cannot be used.
    """
    return _object(path, RESULT_NEEDED, RESULT_OPTIONAL) if os.path.exists(path) else None


def progress(path: Path) -> dict[str, Any]:
    """How far an unfinished run is; empty if there is no such file.

    Raises:
        DamageError: if it cannot be used.
    """
    return _object(path, PROGRESS_NEEDED, {}) if os.path.exists(path) else {}


def is_whole(event: Event) -> bool:
    """Whether a line has what its kind must have."""
    kind = event.get("event")
    if not isinstance(kind, str):
        return False
    nothing: Mapping[str, Shape] = {}
    return misfit(event, NEEDED.get(kind, nothing), OPTIONAL.get(kind, nothing)) is None


def loaded(content: bytes) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    try:
        found = json.loads(content.decode(), parse_constant=_no_number)
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode()  # half a character cannot be shown
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _has_names(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(key, str) for key in found)


def _object(path: Path, needed: Mapping[str, Shape], optional: Mapping[str, Shape]) -> dict[str, Any]:
    content = _bytes(path)
    found = loaded(content)
    if found is None:
        raise DamageError(path.name, "is no JSON object" if content.strip() else "is empty")
    wrong = misfit(found, needed, optional)
    if wrong is not None:
        raise DamageError(path.name, f"is damaged in {wrong!r}" if wrong in found else f"lacks {wrong!r}")
    return found


def _named(lines: list[int]) -> str:
    """Line 17 is damaged and was; lines 17, 18 and 3 others are damaged and were."""
    if len(lines) == 1:
        return f"line {lines[0]} is damaged and was"
    shown, rest = lines[:_NAMED_LINES], len(lines) - _NAMED_LINES
    names = [str(number) for number in shown] + ([f"{rest} more"] if rest > 0 else [])
    return f"lines {', '.join(names[:-1])} and {names[-1]} are damaged and were"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamageError(path.name, "is missing") from error
    except OSError as error:
        raise DamageError(path.name, f"cannot be read ({error.strerror})") from error


def _stamp(path: Path) -> object:
    """What changes with a file; None before the first look, so never that."""
    try:
        stat = path.stat()
    except OSError as error:
        return type(error)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON.")
