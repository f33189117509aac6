"""What happened, line by line: an audit log of every decision and a log of metrics, both JSONL."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

METRIC_EVENTS = frozenset({"epoch", "telemetry"})

BULKY = frozenset({"telemetry"})
"""Events of thousands of numbers, which are not kept in memory."""


TELEMETRY = '{"event": "telemetry"'


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

    def write(self, event: str, **fields: Any) -> None:
        """Record an event. A number that is not finite is written as null, what JSON does not know as a string."""
        record = {"event": event, "time": round(time.time(), 3), **_plain(fields)}
        if event not in BULKY:
            self.events.append(record)
        if self._writes:
            with self._file(event).open("a") as file:
                file.write(_line(record))
        if self._on_event is not None:
            self._on_event(record)

    def restore(self, events: list[dict[str, Any]]) -> None:
        """Go back to an earlier length: what is written after a checkpoint is written again by a resumed run."""
        self.events = list(events)
        self._writes = self._directory is not None
        if self._writes:
            self._rewrite()

    def _rewrite(self) -> None:
        bulky = self._bulky_lines()
        for name in ("audit", "epoch"):
            path = self._file(name)
            unfinished = path.with_name(f".{path.name}.new")
            with unfinished.open("w") as file:
                for event in self.events:
                    if self._file(event["event"]) == path:
                        file.write(_line(event) + (bulky.get(event["step"], "") if event["event"] == "epoch" else ""))
            unfinished.replace(path)

    def _bulky_lines(self) -> dict[int, str]:
        """Lines of the file that no event in memory can write again, by the step of the epoch that they follow."""
        if not self.events or not self._file("telemetry").is_file():
            return {}
        lines = {}
        with self._file("telemetry").open() as file:
            for line in file:
                if line.startswith(TELEMETRY) and line.endswith("}\n"):  # a last line may have been cut
                    lines[int(json.loads(line)["step"])] = line
        return lines

    def _file(self, event: str) -> Path:
        assert self._directory is not None
        return self._directory / ("metrics.jsonl" if event in METRIC_EVENTS else "audit.jsonl")


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
