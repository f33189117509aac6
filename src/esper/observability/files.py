"""The small files of a run directory, and what a line of its logs must be."""

import json
import os
from collections.abc import Callable, Mapping
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
