"""All that a page shows of a run at one moment: its parts as HTML, and the data of its pictures."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.observability.lattice import lengthened
from esper.observability.live.now import answered, listed_run, now
from esper.observability.live.run import Asked, Run
from esper.observability.report import SECTIONS, context, data, render

_AT_THE_END = ("rows", "settings")

ORDER = (
    *("runs", "story", "now"),
    *(name for name in SECTIONS if name not in ("story", *_AT_THE_END)),
    *(*_AT_THE_END, "answers"),
)
"""Parts of the page: those of the report, and what only a run that goes on has; what comes at its end is last."""

_CITED = re.compile(r' data-from="[^"]*"')
"""Where a number comes from: it grows with the run, and only the report is checked by it."""


@dataclass(frozen=True)
class View:
    """What is shown of a run.

    Args:
        parts: HTML by the name of its element.
        data: what the scripts draw.
    """

    parts: dict[str, str]
    data: dict[str, Any]


class Viewer:
    """Shows a run again and again; what has not changed is not worked out again.

    Args:
        run: which is opened by that.
    """

    def __init__(self, run: Run) -> None:
        run.open()
        self._run = run
        self._sensed: dict[str, Any] | None = None
        self._version, self._generation = -1, -1
        self._view = View({}, {})

    def close(self) -> None:
        """Nobody reads it any more."""
        self._run.close()

    def view(self, sent: Sequence[Asked]) -> View:
        """The run as it is now."""
        run = self._run
        if run.version == self._version:
            return self._view
        version, generation, record = run.version, run.generation, run.record
        self._sensed = lengthened(record, self._sensed if generation == self._generation else None)
        drawn = data(record, self._sensed)
        values = {**context(record, drawn), "now": now(run.state, record), "answers": answered(sent)}
        parts = {name: _CITED.sub("", render(f"sections/{name}.html.j2", values)) for name in ORDER if name != "runs"}
        self._version, self._generation = version, generation
        self._view = View(parts, drawn)
        return self._view


def runs_part(runs: Sequence[Run], opened: str | None, notes: Sequence[str]) -> str:
    """The list of runs."""
    rows = [listed_run(run, opened, time.time()) for run in runs]
    return render("sections/runs.html.j2", {"runs": rows, "notes": notes})
