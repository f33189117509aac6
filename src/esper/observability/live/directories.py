"""Runs that are read from directories: of a run each, or of directories of runs."""

import os
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from esper.observability.live.run import Asked, DirectoryRun, Run
from esper.observability.record import check, holds_run

_SEARCH_S, _LOOK_S = 2.0, 1.0
MOST_RUNS = 500
"""Of one directory of runs: those that were changed last."""


class DirectoryRuns:
    """All runs in some directories, those too that begin later.

    Args:
        directories: of runs, or of directories of runs. One that holds nothing yet is watched until it does.

    Raises:
        ConfigError: if there is no such directory, or it cannot be read.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        for directory in directories:
            check(directory)
        self._directories = directories
        self._known: dict[Path, DirectoryRun] = {}
        self._next_search = self._next_look = 0.0
        self.lock = threading.RLock()
        self.notes: list[str] = []
        self.sent: dict[str, list[Asked]] = {}

    def look(self, opened: Collection[str]) -> list[Run]:
        """All runs, in the order of their directories; what is new of them was read."""
        now = time.monotonic()
        if now >= self._next_search:
            self._next_search = now + _SEARCH_S
            self._search()
        is_time = now >= self._next_look
        for run in self._known.values():
            if is_time or run.id in opened:
                run.look()
        if is_time:
            self._next_look = now + _LOOK_S
        return list(self._known.values())

    def _search(self) -> None:
        self.notes = []
        for directory in self._directories:
            found = [directory] if holds_run(directory) else _runs_in(directory)
            for one in found:
                if one not in self._known:
                    self._known[one] = DirectoryRun(one)
            if not found and not any(one.is_relative_to(directory) for one in self._known):
                is_gone = not os.path.isdir(directory)
                how = "is gone" if is_gone else "holds nothing of a run yet"
                self.notes.append(f"{directory} {how}; a run that begins there appears here.")


def _runs_in(directory: Path) -> list[Path]:
    try:
        children = [one.path for one in os.scandir(directory) if one.is_dir()]
    except OSError:
        return []
    runs = sorted((path for path in map(Path, children) if holds_run(path)), key=_changed, reverse=True)
    return sorted(runs[:MOST_RUNS])


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
