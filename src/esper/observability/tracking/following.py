"""Feeds a tracker with what happens in a run, each line once, also where the run is resumed."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from esper.observability.told import told
from esper.observability.tracking.measures import Line, Measures
from esper.observability.tracking.tracker import Run, Tracker, tracker_kind

FOLDER = "tracking"
"""Of a run directory: for each tracker, how far it was told."""


class Told(Protocol):
    """A session, as far as a tracker cares."""

    @property
    def events(self) -> Sequence[Line]:
        """All lines so far, but for telemetry."""
        ...

    def subscribe(self, listener: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
        """Let a listener hear all lines from now on."""
        ...


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Tracking:
    """Tells a tracker of a run.

    In ``tracking/NAME.json`` of the run directory stands how far the tracker was told. A run that is resumed takes some
    steps again: those the tracker knows already are passed over, and those that it missed it is told from the log, but
    for what seeds sensed. Its steps never fall: what happens in an arm stands at the step of the run that waits for it.

    A tracker that fails is given up, which is told once; the run goes on. When the run is resumed it is tried again.

    Args:
        tracker: its name, one of :data:`~esper.observability.tracking.tracker.TRACKERS`.
        directory: of the run.
        name: of the run; None takes that of the directory.
        tell: called with a sentence where it fails; else that is a warning.

    Raises:
        ConfigError: if there is no such tracker, or its library is not installed.
    """

    def __init__(
        self, tracker: str, directory: str | Path, name: str | None = None, tell: Callable[[str], None] = _warn
    ) -> None:
        self.name, self._open, self._tell = tracker, tracker_kind(tracker), tell
        self._directory = Path(directory)
        self._run_name = self._directory.resolve().name if name is None else name
        self._file = self._directory / FOLDER / f"{tracker}.json"
        self._tracker: Tracker | None = None
        self._leave: Callable[[], None] = lambda: None
        self._id: str | None = None
        self._known = (0, 0)
        self._begin()

    def follow(self, session: Told) -> None:
        """Tell of this session from now on, and what happened in it before. Call it once a checkpoint was loaded."""
        self._leave()
        self._begin()
        self._leave = session.subscribe(self)
        self._guarded(self._reopen)
        for line in list(session.events):
            self(line)

    def __call__(self, line: Line) -> None:
        """Take a line of the run's log."""
        if self._tracker is not None:
            self._guarded(self._take, line)

    def close(self) -> None:
        """Tell what waits, and let the tracker go."""
        self._leave()
        self._guarded(self._end)

    def _begin(self) -> None:
        self._measures, self._texts = Measures(), list[str]()
        self._step = self._lines = 0

    def _reopen(self) -> None:
        """Open the tracker where its record stands."""
        self._end()
        stored = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}
        self._id, self._known = stored.get("id"), (stored.get("step", 0), stored.get("lines", 0))
        next_step = stored.get("step", -1) + 1
        self._tracker = self._open(Run(self._directory, self._run_name, self._id, next_step))
        self._id = self._tracker.id

    def _take(self, line: Line) -> None:
        step = max(self._step, line.get("step", 0))
        if step > self._step:
            self._settle()
            self._step, self._lines = step, 0
        self._lines += line["event"] != "telemetry"  # which is not told again
        scalars, histograms = self._measures.scalars(line), self._measures.histograms(line)
        if self._tracker is None or (self._step, self._lines) <= self._known:
            return
        if scalars:
            self._tracker.scalars(self._step, scalars)
        if histograms:
            self._tracker.histograms(self._step, histograms)
        if (news := told(dict(line))) is not None:
            self._texts.append(f"**{news.what}** {news}")

    def _settle(self) -> None:
        """Let the tracker have all of the step that is over, and note that it has."""
        if self._tracker is None or (self._step, self._lines) <= self._known:
            return
        if self._texts:
            self._tracker.text(self._step, "\n\n".join(self._texts))
            self._texts = []
        self._tracker.flush()
        self._known = self._step, self._lines
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".new")
        text = json.dumps({"id": self._id, "step": self._step, "lines": self._lines})
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self._file)

    def _end(self) -> None:
        if self._tracker is not None:
            self._settle()
            tracker, self._tracker = self._tracker, None
            tracker.close()

    def _guarded(self, do: Callable[..., None], *arguments: Any) -> None:
        """Whatever goes wrong is the tracker's: the run has nothing to do with it."""
        try:
            do(*arguments)
        except Exception as error:
            self._tracker = None
            self._leave()
            self._tell(f"The tracker {self.name} has failed and is told no more: {error!r}. Training goes on.")
