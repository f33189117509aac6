"""trackio. Where it writes to is its own affair: ``TRACKIO_DIR``, ``TRACKIO_PROJECT``."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

import trackio

from esper.observability.tracking.tracker import Run


class Trackio:
    """Logs to a run of trackio; one that is resumed goes on with it.

    Args:
        run: the run.

    Attributes:
        id: of the run there.
    """

    def __init__(self, run: Run) -> None:
        name = run.id or run.name
        project = os.environ.get("TRACKIO_PROJECT", "esper")
        resume = "never" if run.id is None else "must"
        with redirect_stdout(sys.stderr):  # what Esper prints may be read by a program
            self._run = trackio.init(
                project=project, name=name, resume=resume, embed=False, auto_log_gpu=False, auto_log_cpu=False
            )
        self.id: str | None = self._run.name

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self._run.log({name: trackio.Histogram(list(one)) for name, one in values.items()}, step=step)

    def text(self, step: int, text: str) -> None:
        self._run.log({"growth": trackio.Markdown(text)}, step=step)

    def flush(self) -> None:
        """Nothing to do: a thread of its own writes what is logged, every half second."""

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
