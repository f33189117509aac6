"""The two logs of a run directory, ``audit.jsonl`` and ``metrics.jsonl``: one JSON object a line."""

import json
import re
from pathlib import Path
from typing import BinaryIO

from esper.contracts.events import EVENTS
from esper.runtime.record.outbox import Line

BULKY = frozenset({"telemetry"})
"""Events of thousands of numbers, which are not kept in memory."""

_BULKY_LINE = re.compile(rb'{"event": "telemetry", "time": [\d.]+, "epoch": \d+, "step": (\d+), .*}\n')


class LogFiles:
    """Appends events to the logs. What cannot be written waits in memory and is written with what comes next.

    Bulky events stay in the file where a log begins anew with the events of a checkpoint.

    Args:
        directory: where the files are.
        is_new: whether they begin anew. Otherwise they are left alone until :meth:`begin_with`.

    Raises:
        OSError: if they cannot begin anew.
    """

    def __init__(self, directory: Path, *, is_new: bool) -> None:
        self.directory = directory
        self.is_writing = is_new
        self._beginning: list[Line] | None = None
        self._waiting: dict[Path, list[str]] = {directory / "audit.jsonl": [], directory / "metrics.jsonl": []}
        self._whole: dict[Path, int] = {}  # bytes that are whole lines, where the last attempt failed
        if is_new:
            self._rewrite([])

    def put(self, event: Line) -> None:
        """Let a line wait for :meth:`write`."""
        if self.is_writing:
            self._waiting[self._file(event)].append(_line(event))

    def begin_with(self, events: list[Line]) -> None:
        """Let the next :meth:`write` replace what the files hold by these events."""
        self.is_writing, self._beginning = True, list(events)
        for lines in self._waiting.values():
            lines.clear()

    def write(self) -> None:
        """Write what waits, each file by itself.

        Raises:
            OSError: the last, if a file cannot be written; what is not in it by then goes on waiting.
        """
        if self._beginning is not None:
            self._rewrite(self._beginning)
            self._beginning = None
            self._whole.clear()
        failed: OSError | None = None
        for path, lines in self._waiting.items():
            if not lines:
                continue
            try:
                self._append(path, "".join(lines).encode())
                lines.clear()
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed

    def _append(self, path: Path, text: bytes) -> None:
        with path.open("ab") as file:
            file.truncate(self._whole.setdefault(path, file.tell()))  # an attempt that failed may leave half a line
            file.write(text)
            file.flush()
        del self._whole[path]

    def _rewrite(self, events: list[Line]) -> None:
        for path in self._waiting:
            path.touch()
            unfinished = path.with_name(f".{path.name}.new")
            with path.open("rb") as old, unfinished.open("wb") as file:
                bulky = _bulky_lines(old)
                for event in events:
                    if self._file(event) == path:
                        file.write(_line(event).encode())
                        if event["event"] == "epoch" and event["step"] in bulky:
                            old.seek(bulky[event["step"]])
                            file.write(old.readline())
            unfinished.replace(path)

    def _file(self, event: Line) -> Path:
        return self.directory / (f"{EVENTS[event['event']].log}.jsonl")


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


def _line(event: Line) -> str:
    return json.dumps(event) + "\n"
