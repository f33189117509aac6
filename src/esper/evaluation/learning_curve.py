"""How a control learned: a few points on its way, from samples that no verdict on growth uses."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from esper.evaluation.scoring import per_sample
from esper.runtime.judging.worth import split_samples
from esper.tasks.task import Samples, Task

POINTS = 40
"""Of a curve, evenly spread over the steps."""


@dataclass
class LearningCurve:
    """Points on the way of a training run.

    Args:
        task: what is learned.
        split_seed: of the deal of the held-out samples; the curve is measured on their *select* part.

    Attributes:
        steps: done at every point.
        flops: training FLOPs up to there.
        train_losses: mean training loss since the point before.
        val_losses: mean loss on the *select* part.
        val_metrics: the metric there.
    """

    task: Task
    split_seed: int
    steps: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)
    val_metrics: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        held_out = self.task.held_out
        select = split_samples(len(held_out.y), self.task.groups, self.split_seed).select
        self._select = Samples(held_out.x[select], held_out.y[select])
        self._sum: Tensor | float = 0.0
        self._count = self._flops = 0

    def after_step(self, model: nn.Module, loss: Tensor, flops: int, step: int, steps: int) -> None:
        """Take a point now and then. The model is left as it was, and so is the global random state.

        Args:
            model: in training.
            loss: of the step.
            flops: of the step.
            step: that was done, from 0, out of
            steps: of the whole run.
        """
        self._sum, self._count, self._flops = self._sum + loss.detach(), self._count + 1, self._flops + flops
        if (step + 1) * POINTS // steps == step * POINTS // steps:
            return
        losses, correct = per_sample(model, self._select, self.task.held_out.y, self.task.precision)
        self.steps.append(step + 1)
        self.flops.append(self._flops)
        self.train_losses.append(float(self._sum) / self._count)
        self.val_losses.append(float(losses.double().mean()))
        self.val_metrics.append(float(correct.double().mean()))
        self._sum, self._count = 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """The points, ready for JSON."""
        return {
            "steps": self.steps,
            "flops": self.flops,
            "train_losses": self.train_losses,
            "val_losses": self.val_losses,
            "val_metrics": self.val_metrics,
        }
