"""Weights & Biases. Whether it is online and in which project is its own affair: ``WANDB_MODE``, ``WANDB_PROJECT``."""

import os
from collections.abc import Mapping, Sequence
from html import escape

import wandb

from esper.observability.tracking.tracker import Run


class WeightsAndBiases:
    """Logs to a run of Weights & Biases; one that is resumed goes on with it.

    Args:
        run: the run.

    Attributes:
        id: of the run there.
    """

    def __init__(self, run: Run) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "esper"),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.directory),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id: str | None = self._run.id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self._run.log({name: wandb.Histogram(list(one)) for name, one in values.items()}, step=step)

    def text(self, step: int, text: str) -> None:
        self._run.log({"growth": wandb.Html(f"<pre>{escape(text)}</pre>", inject=False)}, step=step)

    def flush(self) -> None:
        """Nothing to do: what is logged goes to a process of its own at once."""

    def close(self) -> None:
        self._run.finish()
