"""MLflow. Where it writes to is its own affair: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``.

It has no histograms and no texts at a step: those become files of the run, ``sensed/STEP.json`` and ``growth/STEP.md``.
"""

import os
import time
from collections.abc import Mapping, Sequence

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from esper.observability.tracking.tracker import Run

_MOST = 1000
"""Metrics that MLflow takes at a time."""


class Mlflow:
    """Logs to a run of MLflow; one that is resumed goes on with it.

    Args:
        run: the run.

    Attributes:
        id: of the run there.
    """

    def __init__(self, run: Run) -> None:
        self._client = MlflowClient()
        self.id: str | None = run.id or self._begun(run.name)
        if run.id is not None:
            self._client.update_run(run.id, status="RUNNING")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        for first in range(0, len(metrics), _MOST):
            self._client.log_batch(self.id, metrics=metrics[first : first + _MOST])

    def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        self._client.log_dict(self.id, {name: list(one) for name, one in values.items()}, f"sensed/{step:09}.json")

    def text(self, step: int, text: str) -> None:
        self._client.log_text(self.id, text, f"growth/{step:09}.md")

    def flush(self) -> None:
        """Nothing to do: every call waits until the store has it."""

    def close(self) -> None:
        self._client.set_terminated(self.id)

    def _begun(self, name: str) -> str:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "esper")
        known = self._client.get_experiment_by_name(experiment)
        of = self._client.create_experiment(experiment) if known is None else known.experiment_id
        return str(self._client.create_run(of, run_name=name).info.run_id)


def _allowed(name: str) -> str:
    """The name with ``_`` for every sign that MLflow does not take."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)
