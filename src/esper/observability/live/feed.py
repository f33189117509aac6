"""What each reader of a live page is sent: all at first, then what has changed."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from esper.observability.live.changes import changes
from esper.observability.live.run import Run, Source
from esper.observability.live.view import ORDER, View, Viewer, runs_part

_LOOK_S = 0.1

Message = tuple[str, dict[str, Any]]
"""Name of an event and its content, ready for JSON."""


class Runs:
    """All runs of a page, which any thread may read.

    Args:
        source: where they are told.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = source.lock
        self._viewers: dict[str, Viewer] = {}
        self._readers: Counter[str] = Counter()
        self._runs: list[Run] = []
        self._next_look = 0.0

    def seen(self, wanted: str | None) -> tuple[str | None, str, View | None]:
        """The run that a reader sees, the list of all, and the run's view.

        Args:
            wanted: id of the run; None takes the only one, else the one that told something last.
        """
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._runs = self._source.look(self._viewers.keys())
                self._next_look = time.monotonic() + _LOOK_S
            run = self._chosen(wanted)
            notes = self._source.notes
            if run is None and wanted is not None:
                notes = [*notes, f"There is no run {wanted} here. One that begins appears in the list."]
            part = runs_part(self._runs, None if run is None else run.id, notes)
            if run is None:
                return None, part, None
            viewer = self._viewers.get(run.id)
            if viewer is None:
                viewer = self._viewers[run.id] = Viewer(run)
            return run.id, part, viewer.view(self._source.sent.get(run.id, ()))

    @contextmanager
    def read(self, run: str) -> Iterator[None]:
        """Somebody reads a run for as long as this lasts; then it need not be kept."""
        self._readers[run] += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers[run] -= 1
                if not self._readers[run] and (viewer := self._viewers.pop(run, None)) is not None:
                    viewer.close()

    def _chosen(self, wanted: str | None) -> Run | None:
        if wanted is not None:
            return next((run for run in self._runs if run.id == wanted), None)
        return max(self._runs, key=lambda run: run.state.last_seen or 0.0, default=None)


class Feed:
    """What one reader is sent.

    Args:
        runs: all of them.
        wanted: id of the run that is asked for; None leaves it to us, once.
    """

    def __init__(self, runs: Runs, wanted: str | None) -> None:
        self._runs, self._wanted = runs, wanted
        self._shown: str | None = None
        self._is_begun = False
        self._parts: dict[str, str] = {}
        self._view = View({}, {})

    def next(self) -> Message | None:
        """What has changed since the last call; None if nothing has."""
        shown, listed, view = self._runs.seen(self._wanted)
        parts = {"runs": listed, **(view.parts if view else {})}
        if not self._is_begun or shown != self._shown:
            self._is_begun, self._shown, self._wanted = True, shown, shown or self._wanted
            self._parts, self._view = parts, view or View({}, {})
            order = ORDER if view else ("runs",)
            return "all", {"run": shown, "order": order, "parts": parts, "data": self._view.data}
        told: dict[str, Any] = {}
        if fresh := {name: text for name, text in parts.items() if text != self._parts[name]}:
            told["parts"] = fresh
        if view is not None and (found := changes(self._view.data, view.data)):
            told["data"] = found
        self._parts, self._view = parts, view or self._view
        return ("change", told) if told else None

    @property
    def shown(self) -> str | None:
        """Id of the run that is shown."""
        return self._shown
