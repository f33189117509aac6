"""What happened, line by line: an audit log of every decision and a log of metrics, both JSONL."""

import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

METRIC_EVENTS = frozenset({"epoch", "telemetry"})

BULKY = frozenset({"telemetry"})
"""Events of thousands of numbers, which are not kept in memory."""

_BULKY_LINE = re.compile(rb'{"event": "telemetry", "time": [\d.]+, "epoch": \d+, "step": (\d+), .*}\n')


class Journal:
    """Keeps events in memory, appends them to ``audit.jsonl`` and ``metrics.jsonl``, and hands them on.

    Bulky events are not kept: where a run goes on from a checkpoint, those that its directory holds stay there.

    Args:
        directory: where the files are; None keeps events in memory only.
        on_event: called with every event.
        is_new: whether the files begin anew. Otherwise they are left alone until :meth:`restore`.
    """

    def __init__(
        self, directory: Path | None, on_event: Callable[[dict[str, Any]], None] | None, *, is_new: bool = True
    ) -> None:
        self._directory, self._on_event = directory, on_event
        self.events: list[dict[str, Any]] = []
        self._writes = directory is not None and is_new
        if self._writes:
            self._rewrite()

    @property
    def is_read(self) -> bool:
        """Whether anybody is told of events that are not kept."""
        return self._writes or self._on_event is not None

    def write(self, event: str, **fields: Any) -> None:
        """Record an event. A number that is not finite is written as null, what JSON does not know as a string."""
        self.add({"event": event, "time": round(time.time(), 3), **_plain(fields)})

    def add(self, record: dict[str, Any]) -> None:
        """Take in an event as it was recorded, perhaps elsewhere."""
        event = record["event"]
        if event not in BULKY:
            self.events.append(record)
        if self._writes:
            with self._file(event).open("a") as file:
                file.write(_line(record))
        if self._on_event is not None:
            self._on_event(record)

    def gather(self) -> None:
        """From now on only gather events, beginning with none: in a process that was forked off nobody is told."""
        self.events, self._writes, self._on_event = [], False, None

    def restore(self, events: list[dict[str, Any]]) -> None:
        """Go back to an earlier length: what is written after a checkpoint is written again by a resumed run."""
        self.events = list(events)
        self._writes = self._directory is not None
        if self._writes:
            self._rewrite()

    def _rewrite(self) -> None:
        for name in ("audit", "epoch"):
            path = self._file(name)
            path.touch()
            unfinished = path.with_name(f".{path.name}.new")
            with path.open("rb") as old, unfinished.open("wb") as file:
                bulky = _bulky_lines(old)
                for event in self.events:
                    if self._file(event["event"]) == path:
                        file.write(_line(event).encode())
                        if event["event"] == "epoch" and event["step"] in bulky:
                            old.seek(bulky[event["step"]])
                            file.write(old.readline())
            unfinished.replace(path)

    def _file(self, event: str) -> Path:
        assert self._directory is not None
        return self._directory / ("metrics.jsonl" if event in METRIC_EVENTS else "audit.jsonl")


def _bulky_lines(file: BinaryIO) -> dict[int, int]:
    """Where the lines begin that no event in memory can write again, by the step of the epoch that they follow.

    They stay on disk: together they may be large. One that was cut is left out.
    """
    begins, at = {}, 0
    for line in file:
        if found := _BULKY_LINE.fullmatch(line):
            begins[int(found[1])] = at
        at += len(line)
    return begins


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
