"""What happened, line by line: an audit log of every decision and a log of metrics, kept, written and handed on."""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esper.contracts.events import Event, Note, record
from esper.runtime.record.log_files import LOOSE, LogFiles
from esper.runtime.record.outbox import Line, Listener, Outbox


class Journal:
    """Records events in memory; the logs and the listeners get them where nothing is half done.

    Recording never fails and calls nobody. Some events are not kept (:data:`LOOSE`): where a run goes on from a
    checkpoint, those that its directory holds stay there.

    Args:
        directory: where the logs are; None keeps events in memory only.
        is_new: whether the logs begin anew. Otherwise they are left alone until :meth:`restore`.

    Raises:
        OSError: if the logs cannot begin anew.
    """

    def __init__(self, directory: Path | None, *, is_new: bool = True) -> None:
        self._files = None if directory is None else LogFiles(directory, is_new=is_new)
        self._outbox = Outbox(self._note)
        self.events: list[Line] = []
        self._troubles: set[str] = set()

    @property
    def is_read(self) -> bool:
        """Whether anybody is told of events that are not kept."""
        return (self._files is not None and self._files.is_writing) or self._outbox.is_read

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Let a listener hear all events from now on; gives what ends that."""
        return self._outbox.subscribe(listener)

    def write(self, event: Event) -> None:
        """Record an event. A number that is not finite is written as null, what JSON does not know as a string."""
        line = plain(record(event))
        self.add({"event": line.pop("event"), "time": round(time.time(), 3), **line})

    def add(self, line: Line) -> None:
        """Take in an event as it was recorded, perhaps elsewhere."""
        if line["event"] not in LOOSE:
            self.events.append(line)
        if self._files is not None:
            self._files.put(line)
        self._outbox.put(line)

    def deliver(self) -> None:
        """Call the listeners and write the logs; see :class:`Outbox` for what comes of errors."""
        self._outbox.deliver()
        self.save()

    def save(self) -> None:
        """Write the logs. Lines that cannot be written now wait in memory, which is told once until it works again."""
        if self._files is None:
            return
        try:
            self._files.write()
        except OSError as error:
            self.warn("logs", f"The logs in {self._files.directory} cannot be written: {error}. Lines wait in memory.")
        else:
            self.is_mended("logs")

    def warn(self, about: str, text: str) -> None:
        """Note something that the user can mend, and warn of it, for logs may be out of reach; once until it is."""
        if about not in self._troubles:
            self._troubles.add(about)
            self._note(text)
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def is_mended(self, about: str) -> None:
        """What was warned of is well again."""
        self._troubles.discard(about)

    def gather(self) -> None:
        """From now on only gather events, beginning with none: in a process that was forked off nobody is told."""
        self.events, self._files, self._outbox = [], None, Outbox(self._note)

    def restore(self, events: list[Line]) -> None:
        """Go back to an earlier length: what is written after a checkpoint is written again by a resumed run."""
        self.events = list(events)
        if self._files is not None:
            self._files.begin_with(self.events)

    def _note(self, text: str) -> None:
        self.write(Note(text=text))


def plain(value: Any) -> Any:
    """What JSON can hold: null for a number that is not finite, text for what it does not know."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
