"""One row of a comparison: how large, how dear, how good."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor, nn

from esper.evaluation.scoring import further_measures, per_sample
from esper.runtime.judging.worth import split_samples
from esper.tasks.task import Samples, Task


class PerSample(NamedTuple):
    """Loss and score of every test sample, both float32 ``[n]``; the metric is the mean of the scores."""

    losses: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Row:
    """A trained network, measured.

    Args:
        parameters: of the network.
        train_flops: multiply-adds of its training, times two, as torch's FlopCounterMode counts.
        val_loss: mean loss on the *select* part of the held-out samples: in nats, or for a quantity the squared error
            relative to the variance of the training part.
        val_metric: the task's metric on the *select* part: share of right predictions, or R2.
        test_loss: mean loss on the test samples, alike.
        test_metric: the task's metric on the test samples.
        seconds: wall-clock time of its training.
        lr: peak learning rate.
        schedule: name of its learning-rate schedule.
        curve: how it learned, see :class:`LearningCurve`; None where the run's own log tells.
        test_further: other measures of the test samples, by name.
        test: the test samples one by one.
    """

    parameters: int
    train_flops: int
    val_loss: float
    val_metric: float
    test_loss: float
    test_metric: float
    seconds: float
    lr: float
    schedule: str
    curve: dict[str, Any] | None
    test_further: dict[str, float]
    test: PerSample = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the single samples; what is not finite is None, but for points of the curve."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "test"}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def measured(
    model: nn.Module,
    task: Task,
    split_seed: int,
    *,
    train_flops: int,
    seconds: float,
    lr: float,
    schedule: str,
    curve: dict[str, Any] | None = None,
) -> Row:
    """The row of a trained model.

    Args:
        model: as trained; its mode is left as it was.
        task: what it learned.
        split_seed: of the deal of the held-out samples into select, gate and confirm part.
        train_flops, seconds, lr, schedule, curve: as in :class:`Row`.
    """
    select = split_samples(len(task.held_out.y), task.groups, split_seed).select
    held_out = task.held_out
    selected = Samples(held_out.x[select], held_out.y[select])
    val_losses, val_correct = per_sample(model, selected, held_out.y, task.precision)
    test = PerSample(*per_sample(model, task.test, precision=task.precision))
    return Row(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_flops=train_flops,
        val_loss=float(val_losses.double().mean()),
        val_metric=float(val_correct.double().mean()),
        test_loss=float(test.losses.double().mean()),
        test_metric=float(test.correct.double().mean()),
        seconds=seconds,
        lr=lr,
        schedule=schedule,
        curve=curve,
        test_further=further_measures(model, task, test.losses),
        test=test,
    )
