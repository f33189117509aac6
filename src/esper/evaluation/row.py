"""One row of a comparison: how large, how dear, how good."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor, nn

from esper.evaluation.scoring import per_sample
from esper.runtime.judging.worth import split_samples
from esper.tasks.task import Samples, Task


class PerSample(NamedTuple):
    """Loss and share of right predictions of every test sample, both float32 ``[n]``."""

    losses: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Row:
    """A trained network, measured.

    Args:
        parameters: of the network.
        train_flops: multiply-adds of its training, times two, as torch's FlopCounterMode counts.
        val_loss: mean loss on the *select* part of the held-out samples, in nats.
        val_metric: share of predictions on the *select* part that are right.
        test_loss: mean loss on the test samples, in nats.
        test_metric: share of predictions on the test samples that are right.
        seconds: wall-clock time of its training.
        lr: peak learning rate.
        schedule: name of its learning-rate schedule.
        curve: how it learned, see :class:`LearningCurve`; None where the run's own log tells.
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
    val_losses, val_correct = per_sample(model, Samples(task.held_out.x[select], task.held_out.y[select]))
    test = PerSample(*per_sample(model, task.test))
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
        test=test,
    )
