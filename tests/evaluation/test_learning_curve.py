"""The curve of a control: measured on its way, and the way stays what it was."""

import pytest
import torch
from torch import nn

from esper.evaluation.controls import Setting, host_on
from esper.evaluation.learning_curve import POINTS, LearningCurve
from esper.evaluation.training import SCHEDULES, Recipe, batches, optimizer_of, train
from esper.tasks.task import Task

RECIPE = Recipe(1e-2, "cosine")


class Unwatched(LearningCurve):
    def after_step(self, *_: object) -> None:
        pass


def _trained(task: Task, curve: LearningCurve, steps: int) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Dropout(0.2), task.make_host())
    train(model, optimizer_of(model), batches(task, 16, 3), RECIPE, range(steps), steps, curve, 7)
    return model


@pytest.mark.parametrize("steps", [1, 7, POINTS, 3 * POINTS + 1])
def test_points_lie_evenly_and_end_with_the_run(task, steps):
    curve = LearningCurve(task, 5)
    _trained(task, curve, steps)
    assert len(curve.steps) == min(steps, POINTS)
    assert curve.steps[-1] == steps
    assert curve.steps == sorted(set(curve.steps))
    assert curve.flops == [7 * step for step in curve.steps]


def test_a_watched_run_ends_with_the_same_bytes(task):
    """Dropout would show a random number that was drawn for the curve."""
    watched, alone = (_trained(task, kind(task, 5), 60) for kind in (LearningCurve, Unwatched))
    assert watched.training
    assert all(torch.equal(p, q) for p, q in zip(watched.parameters(), alone.parameters(), strict=True))


def test_the_last_point_is_the_row(task):
    row = host_on(task, 10**6, Setting(16, 3, 5, recipes=tuple(Recipe(1e-2, name) for name in SCHEDULES)))
    assert row.curve is not None
    assert row.curve["val_losses"][-1] == row.val_loss
    assert row.curve["val_metrics"][-1] == row.val_metric
    assert row.curve["flops"][-1] == row.train_flops
    assert row.curve["train_losses"][-1] < row.curve["train_losses"][0]
