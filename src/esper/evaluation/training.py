"""Plain training, without Esper: what growth is compared with."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from esper.contracts.errors import CheckpointError
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.scoring import mean_loss
from esper.runtime.costs.flops import count
from esper.runtime.training.loader import BatchLoader
from esper.tasks.task import Task

WEIGHT_DECAY = 0.01
TAIL = 0.3


def cosine(progress: float) -> float:
    """Half a cosine, from 1 down to 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5 without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant_then_linear(progress: float) -> float:
    """1, then linearly down to 0 over the last 30 %."""
    return min(1.0, (1 - progress) / TAIL)


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "constant_then_linear": constant_then_linear}
"""Share of the peak learning rate, by the share of the steps that are done."""


@dataclass(frozen=True)
class Recipe:
    """How a run sets its learning rate: peak, and the name of a schedule."""

    lr: float
    schedule: str

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` (from 0) in a run of ``steps``."""
        return self.lr * SCHEDULES[self.schedule](step / steps)


class Epochs:
    """Epochs of a fixed number of batches, which go through the data one after the other, however large those are.

    Args:
        loader: gives the batches; it begins anew where it ends.
        batches: of an epoch.
    """

    def __init__(self, loader: BatchLoader, batches: int) -> None:
        self._loader, self._batches = loader, batches
        self._position = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches that are left of this epoch."""
        while self._position < self._batches:
            for batch in self._loader:
                self._position += 1
                yield batch
                if self._position == self._batches:
                    break
        self._position = 0

    def state_dict(self) -> dict[str, int]:
        """Where it stands: in the epoch, and in the data."""
        return {"batch": self._position, **self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            CheckpointError: if an epoch is shorter than that.
        """
        if not 0 <= state["batch"] <= self._batches:
            raise CheckpointError(
                f"The loader stood at batch {state['batch']} of an epoch, but an epoch now has {self._batches}."
            )
        self._loader.load_state_dict(state)
        self._position = state["batch"]


def optimizer_of(model: nn.Module) -> Optimizer:
    """AdamW as every control uses it. Fused: the same maths, and faster for tiny models."""
    return AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)


def batches(task: Task, batch_size: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Training batches without end."""
    loader = BatchLoader(task.train, batch_size, seed)
    while True:
        yield from loader


def train(
    model: nn.Module,
    optimizer: Optimizer,
    source: Iterator[tuple[Tensor, ...]],
    recipe: Recipe,
    span: range,
    steps: int,
    curve: LearningCurve,
    flops: int,
) -> None:
    """Train for the steps of ``span``, each of ``flops``, out of ``steps`` in the schedule, in the task's precision."""
    model.train()
    forward: Any = torch.compile(model, fullgraph=True) if curve.task.is_compiled else model
    for step in span:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        loss = mean_loss(forward, next(source), curve.task.precision)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.after_step(model, loss, flops, step, steps)


def flops_per_step(model: nn.Module, batch: tuple[Tensor, ...]) -> int:
    """FLOPs of one forward and backward on ``batch``; model and global random state stay as they are."""
    probe = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        return count(lambda: mean_loss(probe, batch).backward())
