"""One run of the question whether a round chooses well: with all its candidates, or with a single one of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.trials_list import TASKS
from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.evaluation.growing import growing
from esper.evaluation.scoring import per_sample
from esper.kasmina.host.export import export
from esper.tamiyo.heuristic import HeuristicPolicy

ROUND = "the round"
"""Name of the run in which the round chooses, where others have the name of their place."""


class Job(NamedTuple):
    """A run of a task from a seed.

    Attributes:
        task: name in ``TASKS``.
        seed: of everything, the split of the data too.
        place: the only candidate; None for the round's own choice.
        text: for tasks that need one.
        pace: settings of the pace that are not ``esper run``'s.
        growth: the same of growth.
    """

    task: str
    seed: int
    place: str | None
    text: Path | None
    pace: dict[str, Any]
    growth: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of the run, for files and messages."""
        return f"{self.task}/{self.seed}/{ROUND if self.place is None else f'place {self.place!r}'}"


class Alone:
    """Offers one place at the time at which the heuristic would offer its shortlist.

    Where the shortlist holds the place, the others are called off before they begin, so that the one has the same
    seeds, blueprint, size, strategy and first weights (which follow from the number of its lifecycle). Where it does
    not, the place is offered as the heuristic would if the model had no other.

    Args:
        config: of the run.
        layer_id: the place.
    """

    def __init__(self, config: GrowthConfig, layer_id: str) -> None:
        self._heuristic, self._layer_id = HeuristicPolicy(config), layer_id

    def decide(self, observation: Observation) -> list[Command]:
        """The one candidate, or nothing."""
        offered = self._heuristic.decide(observation)
        if not offered:
            return []
        if any(command.layer_id == self._layer_id for command in offered):
            others = [command for command in offered if command.layer_id != self._layer_id]
            return offered + [Command(one.layer_id, one.seed_id, State.CANCELLED, "stands alone") for one in others]
        places = [place for place in observation.places if place.layer_id == self._layer_id]
        return self._heuristic.decide(replace(observation, places=places))


def run_one(job: Job) -> dict[str, Any]:
    """Run to the end, with one round at the most; gates as they are shipped.

    Returns:
        Test loss and accuracy; which places were offered, which of them was adopted (None: none) and whether it became
        a fossil; and the training FLOPs.
    """
    field = TASKS[job.task]
    task, pace = field.load(job.seed, job.text), field.pace(job.text) | job.pace
    config = GrowthConfig(seed=job.seed, max_rounds=1, **job.growth)
    policy = None if job.place is None else Alone(config, job.place)
    run = growing(task, config, **pace, seed=job.seed, policy=policy)
    run.finish()
    losses, correct = per_sample(export(run.model), task.test)
    session = run.session
    rounds = [event for event in session.events if event["event"] == "round_ended"]
    adopted = rounds[0]["adopted"] if rounds else None
    return {
        "test_loss": float(losses.double().mean()),
        "test_accuracy": float(correct.double().mean()),
        "offered": sorted({report.layer_id for report in session.field_reports}),
        "adopted": None if adopted is None else adopted["layer_id"],
        "is_kept": any(report.outcome == "FOSSILIZED" for report in session.field_reports),
        "train_flops": session.train_flops,
    }
