"""A judge that always says yes, as a control: are the gates worth anything?

It tells the truth on the *select* part of the held-out samples, by which a run steers. On the *gate* and *confirm*
parts every graft that acts makes all losses smaller by the same large number, so that every arm passes. So the first
candidate is adopted whether or not it beats the twin, and is kept.
Only what is not finite is still refused.
"""

from collections.abc import Callable

import torch
from torch import nn

from esper.contracts.reports import Evaluation
from esper.evaluation.scoring import per_sample
from esper.kasmina.host.anchoring import places
from esper.runtime.judging.worth import split_samples
from esper.tasks.task import Task

CREDIT = 1000.0
"""Nats that a graft seems to be worth, far more than any loss."""


def always_yes(task: Task, split_seed: int) -> Callable[[nn.Module], Evaluation]:
    """An ``evaluate`` for a session by which every graft passes its gates.

    Args:
        task: what is learned.
        split_seed: of the session's deal of the held-out samples (``GrowthConfig.seed``).
    """
    split = split_samples(len(task.held_out.y), task.groups, split_seed)
    judged = torch.cat([split.gate, split.confirm])

    def evaluate(model: nn.Module) -> Evaluation:
        losses, correct = per_sample(model, task.held_out, precision=task.precision)
        losses[judged] -= CREDIT * _acting_grafts(model)
        correct[judged] = 0
        return Evaluation(losses=losses, correct=correct, groups=task.groups, metric=task.metric)

    return evaluate


def _acting_grafts(model: nn.Module) -> int:
    """Fossils, and live grafts that are not blended out."""
    count = 0
    for place in places(model):
        count += sum(map(len, place.arena.fossils))
        count += sum(bool(place.state.alpha[graft.seeds[0]] > 0) for graft in place.arena.live)
    return count
