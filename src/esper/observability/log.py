"""The logs of a run directory, looked at again and again: only what is new of them is read."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esper.observability.files import UNKNOWN, DamageError, Numbered, is_whole, loaded

_NAMED_LINES = 5
_REMEMBERED_BYTES = 512


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


def _named(lines: list[int]) -> str:
    """Line 17 is damaged and was; lines 17, 18 and 3 others are damaged and were."""
    if len(lines) == 1:
        return f"line {lines[0]} is damaged and was"
    shown, rest = lines[:_NAMED_LINES], len(lines) - _NAMED_LINES
    names = [str(number) for number in shown] + ([f"{rest} more"] if rest > 0 else [])
    return f"lines {', '.join(names[:-1])} and {names[-1]} are damaged and were"
