"""The two logs of a run directory, ``audit.jsonl`` and ``metrics.jsonl``: one JSON object a line."""

import json
import re
from pathlib import Path
from typing import BinaryIO

from esper.contracts.events import EVENTS, MEASURED
from esper.runtime.record.outbox import Line

LOOSE = MEASURED | {"telemetry"}
"""Events that are not kept in memory: of thousands of numbers, or of the machine."""

_LOOSE_LINE = re.compile(
    rb'{"event": "(?:%s)", "time": [\d.]+, (?:"epoch": \d+, )?"step": (\d+), .*}\n' % "|".join(sorted(LOOSE)).encode()
)


class LogFiles:
    """Appends events to the logs. What cannot be written waits in memory and is written with what comes next.

    Loose events stay in the file where a log begins anew with the events of a checkpoint.

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
        last = max((event["step"] for event in events if isinstance(event.get("step"), int)), default=0)
        for path in self._waiting:
            path.touch()
            unfinished = path.with_name(f".{path.name}.new")
            with path.open("rb") as old, unfinished.open("wb") as file:
                loose = _loose_lines(old, last)
                own = (_line(event).encode() for event in events if self._file(event) == path)
                for line in (b"", *own):
                    file.write(line)
                    for at in loose.pop(line, ()):
                        old.seek(at)
                        file.write(old.readline())
            unfinished.replace(path)

    def _file(self, event: Line) -> Path:
        return self.directory / (f"{EVENTS[event['event']].log}.jsonl")


def _loose_lines(file: BinaryIO, last: int) -> dict[bytes, list[int]]:
    """Where the lines up to a step begin that no event in memory can write again, by the line that they follow.

    They stay on disk: together they may be large. One that was cut is left out.
    """
    begins: dict[bytes, list[int]] = {}
    at, before = 0, b""
    for line in file:
        if not (found := _LOOSE_LINE.fullmatch(line)):
            before = line
        elif int(found[1]) <= last:
            begins.setdefault(before, []).append(at)
        at += len(line)
    return begins


def _line(event: Line) -> str:
    return json.dumps(event) + "\n"
