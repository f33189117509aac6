"""Episodes: a small real run that is let grow as somebody decides, and what share of the loss that has saved.

All costs of trying are included: the outcome is compared with the host alone, trained for as many FLOPs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport, Observation
from esper.evaluation.growing import Growing, growing
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.scoring import per_sample
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of, train
from esper.learning.generated import BOUNDARIES, Practice
from esper.tamiyo.heuristic import HeuristicPolicy, Policy
from esper.tamiyo.learned.actions import Action, legal_actions
from esper.tasks.task import Task

STRETCHES = (1.5, 2.25)
"""Lengths of further runs of the host alone that episodes are compared with, in planned steps."""

WORST = -0.5
"""A share of the loss; what costs more counts as this, so that no single run outweighs all others."""


@dataclass(frozen=True)
class Frontier:
    """The host alone: its final test loss by the FLOPs of its training, each point a whole run of its own.

    Args:
        flops: of each run, rising.
        losses: at its end.
    """

    flops: Sequence[float]
    losses: Sequence[float]

    def at(self, flops: float) -> float:
        """The loss that so many FLOPs buy, on a line between logarithms; more never buy less, since one may stop."""
        least = np.minimum.accumulate(self.losses)
        return float(math.exp(np.interp(math.log(flops), np.log(self.flops), np.log(least))))

    def saved(self, loss: float, flops: float) -> float:
        """Share of the loss that is saved at equal FLOPs; negative where something is lost."""
        return max(WORST, 1 - loss / self.at(flops)) if math.isfinite(loss) else WORST


@dataclass(frozen=True)
class Decided:
    """An action that was taken.

    Args:
        boundary: at which, from 0.
        observation: what there was to see.
        action: index of what was done, among the legal actions.
        is_adopted: whether the graft beat its twin.
    """

    boundary: int
    observation: Observation
    action: int
    is_adopted: bool = False


@dataclass(frozen=True)
class Episode:
    """What became of a run.

    Args:
        loss: on the test samples.
        flops: of its training, with arms and judging.
        parameters: of the network at the end.
        reports: of its lifecycles.
        decided: actions, in their order.
        seen: every boundary at which something might have been done, by its number.
        heuristic: of each, the index of what the heuristic would have done; None where it would have waited.
    """

    loss: float
    flops: float
    parameters: int
    reports: Sequence[FieldReport] = ()
    decided: Sequence[Decided] = ()
    seen: dict[int, Observation] = field(default_factory=dict)
    heuristic: dict[int, int | None] = field(default_factory=dict)


Choose = Callable[[int, Observation, Sequence[Action]], int | None]
"""Index of the action to take at a boundary, by its number, what is seen and the actions; None waits."""


class Scripted:
    """A policy that notes what it sees and what the heuristic would do, and does what a function says.

    Args:
        config: of the run.
        choose: called where there is something to do.
        most: actions that it will take at most.
    """

    def __init__(self, config: GrowthConfig, choose: Choose, most: int) -> None:
        self._most = most
        self._config, self._choose, self._heuristic = config, choose, HeuristicPolicy(config)
        self.seen: dict[int, Observation] = {}
        self.heuristic: dict[int, int | None] = {}
        self.decided: list[Decided] = []

    def decide(self, observation: Observation) -> list[Command]:
        """What the function says."""
        actions = legal_actions(observation, self._config)
        if not actions:
            return []
        boundary = observation.epoch
        self.seen[boundary], self.heuristic[boundary] = observation, self._of_heuristic(observation, actions)
        chosen = self._choose(boundary, observation, actions)
        if chosen is None:
            return []
        self.decided.append(Decided(boundary, observation, chosen))
        return [actions[chosen].command(self._config, "on trial")]

    def _of_heuristic(self, seen: Observation, actions: Sequence[Action]) -> int | None:
        """Index of the first candidate that it would offer; None where it waits."""
        offered = [(one.layer_id, one.blueprint) for one in self._heuristic.decide(seen)]
        named = [(one.place.layer_id, one.option.blueprint.id) for one in actions]
        return next((named.index(one) for one in offered if one in named), None)

    def has_lost(self, reports: Sequence[FieldReport]) -> bool:
        """Whether all that it will try was tried, and nothing adopted."""
        return len(self.decided) == len(reports) == self._most > 0 and not any(map(is_adopted, reports))

    def answered(self, answer: Answer) -> None:
        """What was refused was not done."""
        if not answer.accepted:
            self.decided.pop()


def prepared(practice: Practice, config: GrowthConfig, policy: Policy | None) -> Growing:
    """The run of a task, not yet begun.

    Raises:
        ConfigError: if nothing can grow in its host.
    """
    return growing(
        practice.task,
        config,
        epochs=BOUNDARIES,
        batch_size=practice.batch_size,
        lr=practice.lr,
        schedule=practice.schedule,
        seed=practice.seed,
        steps_per_epoch=practice.steps // BOUNDARIES,
        policy=policy,
    )


def run_episode(practice: Practice, config: GrowthConfig, policy: Policy, never: Episode | None = None) -> Episode:
    """Train a task to the end while a policy decides.

    Args:
        practice: the task.
        config: how it may grow; its seed is the task's.
        policy: decides.
        never: what became of it where nothing was tried. A scripted run in whose rounds nothing was adopted is that
            run, to the byte, and is not trained to the end.

    Raises:
        EsperError: if the run cannot go on.
    """
    run = prepared(practice, config, policy)
    for _ in range(run.epochs):
        for batch in run.loader:
            run.session.step(batch)
        run.session.after_epoch()
        if never is None or config.trial != "round" or not isinstance(policy, Scripted):
            continue
        if policy.has_lost(run.session.field_reports):
            return _episode(run, policy, never.loss, flops_as_never(run, practice, never.flops))
    run.session.finish()
    return _episode(run, policy, loss_of(run.model, practice.task), float(run.session.train_flops))


def _episode(run: Growing, policy: Policy, loss: float, flops: float) -> Episode:
    reports = run.session.field_reports
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    parameters += sum(one.parameters for one in reports if one.outcome == State.FOSSILIZED.name)  # these are buffers
    if not isinstance(policy, Scripted):
        return Episode(loss, flops, parameters, reports)
    decided = [
        replace(one, is_adopted=is_adopted(report)) for one, report in zip(policy.decided, reports, strict=False)
    ]
    return Episode(loss, flops, parameters, reports, decided, policy.seen, policy.heuristic)


def flops_as_never(run: Growing, practice: Practice, never: float) -> float:
    """FLOPs at its end of a run that will adopt nothing more: those of the run that never grew, and what it has tried.

    Args:
        run: up to here.
        practice: its task.
        never: FLOPs of the run that never grew.
    """
    return never + run.session.train_flops - run.session.step_count / practice.steps * never


def is_adopted(report: FieldReport) -> bool:
    """Whether a graft beat its twin."""
    return State.FINE_TUNING.name in report.gates


def frontier(practice: Practice, never: Episode, stretches: Sequence[float] = STRETCHES) -> Frontier:
    """The host alone, trained for some lengths of time; its schedule is stretched alike.

    Args:
        practice: the task.
        never: its run without growth, the first point.
        stretches: of the others.
    """
    flops, losses = [never.flops], [never.loss]
    for stretch in stretches:
        task, steps = practice.task, round(stretch * practice.steps)
        torch.manual_seed(practice.seed)
        host = task.make_host()
        source = batches(task, practice.batch_size, practice.seed)
        cost = flops_per_step(host, next(batches(task, practice.batch_size, practice.seed)))
        recipe = Recipe(practice.lr, practice.schedule)
        train(host, optimizer_of(host), source, recipe, range(steps), steps, LearningCurve(task, practice.seed), cost)
        flops.append(float(steps * cost))
        losses.append(loss_of(host, task))
    return Frontier(flops, losses)


def loss_of(model: nn.Module, task: Task) -> float:
    """On the test samples."""
    return float(per_sample(model, task.test, precision=task.precision)[0].double().mean())
