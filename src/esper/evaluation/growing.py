"""The grown run itself: a task's host with seeds, under the defaults that are compared with the controls."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Evaluation
from esper.evaluation.row import per_sample
from esper.evaluation.training import WEIGHT_DECAY, cosine
from esper.kasmina.hosts import wrap
from esper.runtime.loader import BatchLoader
from esper.runtime.session import Session
from esper.tasks.task import Task

SCHEDULE = "cosine"


@dataclass(frozen=True)
class Growing:
    """A run that is about to begin, or to go on.

    Attributes:
        model: the wrapped host.
        session: trains it and lets it grow.
        loader: its batches.
        epochs: of the whole run.
    """

    model: nn.Module
    session: Session
    loader: BatchLoader
    epochs: int

    def finish(self) -> None:
        """Train to the end."""
        for _ in range(self.session.epoch, self.epochs):
            for batch in self.loader:
                self.session.step(batch)
            self.session.after_epoch()
        self.session.finish()


def growing(
    task: Task,
    config: GrowthConfig,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    directory: Path | None = None,
    checkpoint_steps: int | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> Growing:
    """Prepare a run: AdamW, half a cosine, the task's host from ``seed``.

    Args:
        task: what is learned.
        config: how it may grow.
        epochs: of the run.
        batch_size: samples of a batch.
        lr: peak learning rate.
        seed: of first weights and order of batches.
        directory, checkpoint_steps, on_event: as in :class:`esper.Session`.
    """
    torch.manual_seed(seed)
    model = wrap(task.make_host(), config)
    loader = BatchLoader(task.train, batch_size, seed)
    steps = epochs * len(loader)
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)

    def evaluate(model: nn.Module) -> Evaluation:
        losses, correct = per_sample(model, task.held_out)
        return Evaluation(losses=losses, correct=correct)

    session = Session(
        model,
        optimizer,
        loss=cross_entropy,
        evaluate=evaluate,
        planned_steps=steps,
        scheduler=LambdaLR(optimizer, lambda step: cosine(step / steps)),
        scheduler_every="step",
        loader=loader,
        directory=directory,
        checkpoint_steps=checkpoint_steps,
        on_event=on_event,
    )
    return Growing(model, session, loader, epochs)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean cross entropy of a batch ``(x, y)``."""
    x, y = batch
    return F.cross_entropy(model(x), y)
