"""Run directories as rollouts meet them, and stores that are watched."""

import json
from pathlib import Path
from typing import Any

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


def write_run(directory: Path, *, is_on: bool, begin: float, step_s: float = 0.1, ends: bool = True) -> None:
    """The logs of a run as a session writes them."""
    directory.mkdir(parents=True)
    flags = {name: {"is_on": is_on, "reason": "as the test says"} for name in FLAGS}
    audit = [
        directories.model(time=begin),
        {"event": "flags", "time": begin, "step": 0, "model_id": directory.name, "flags": flags},
    ]
    epochs = [
        directories.epoch(number, time=begin + 25 * number * step_s, memory_bytes=10**9) for number in range(1, 15)
    ]
    if ends:
        end = {"step": 350, "select_loss": 0.2, "select_metric": 0.9, "train_flops": 9}
        audit.append({"event": "finished", "time": epochs[-1]["time"], **end})
    for name, lines in (("audit.jsonl", audit), ("metrics.jsonl", epochs)):
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
