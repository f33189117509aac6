"""Run directories as rollouts meet them, and stores that are watched."""

import json
from pathlib import Path
from typing import Any

from esper.contracts.events import STEP_BOUNDS_S
from esper.contracts.flags import FLAGS
from esper.evaluation.rollout.health import Point, RunHealth
from esper.evaluation.rollout.plan import Criteria, Terms
from tests.observability import directories

FLAG = "grafting_strategies"
PLAN = (10.0, 50.0, 100.0)


def terms(**criteria: Any) -> Terms:
    """Of a rollout that needs two runs a step."""
    return Terms(FLAG, PLAN, "flags.json", "runs", Criteria(**{"min_runs": 2, **criteria}))


def health(number: int, *, is_on: bool, step_s: float = 1.0, **fields: Any) -> RunHealth:
    """A run that has finished well, a hundred steps a boundary."""
    points = tuple(Point(number + 100 * step_s * at, 100 * at, 10**9) for at in range(1, 15))
    known: dict[str, Any] = {"kind": "mlp", "points": points, "is_finished": True, "loss": 0.5 + number % 7 / 100}
    last = points[-1].time
    return RunHealth(run=f"run-{number}", is_on=is_on, began=float(number), last=last, **(known | fields))


def logs(name: str, *, is_on: bool, begin: float, step_s: float = 0.1, ends: bool = True) -> dict[str, list[dict]]:
    """The lines of a run as a session writes them, by file."""
    flags = {name: {"is_on": is_on, "reason": "as the test says"} for name in FLAGS}
    audit = [
        directories.model(time=begin),
        {"event": "flags", "time": begin, "step": 0, "model_id": name, "flags": flags},
    ]
    metrics = []
    for number in range(1, 15):
        at = begin + 25 * number * step_s
        machine = {"memory_bytes": 10**9, "device_memory_bytes": 10**6, "device_memory_peak_bytes": 10**6}
        work = {
            "seconds": 25 * step_s,
            "steps": 25,
            "step_seconds": 20 * step_s,
            "step_times": [0] * (len(STEP_BOUNDS_S) + 1),
            "arm": None,
        }
        about = {"gpu_utilisation": None, "grown_parameters": 0}
        metrics += [
            directories.epoch(number, time=at),
            {"event": "vitals", "time": at, "step": 25 * number, **work, **machine, **about},
        ]
    if ends:
        end = {"step": 350, "select_loss": 0.2, "select_metric": 0.9, "train_flops": 9}
        audit.append({"event": "finished", "time": metrics[-1]["time"], **end})
    return {"audit.jsonl": audit, "metrics.jsonl": metrics}


def write_run(directory: Path, **told: Any) -> None:
    """The logs of a run; arguments as of :func:`logs`."""
    directory.mkdir(parents=True)
    for name, lines in logs(directory.name, **told).items():
        (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


class WatchedStore:
    """Remembers every share that was set, and can fail."""

    def __init__(self, percent: float = 0.0) -> None:
        self.percent, self.history, self.error = percent, [percent], None

    def share(self, flag: str) -> float:
        return self.percent

    def set_share(self, flag: str, percent: float) -> None:
        if self.error is not None:
            raise self.error
        self.percent = percent
        self.history.append(percent)

    def off(self, flag: str) -> None:
        self.set_share(flag, 0.0)
