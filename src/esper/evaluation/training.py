"""Plain training, without Esper: what growth is compared with."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from esper.runtime.loader import BatchLoader
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
) -> None:
    """Train for the steps of ``span``, out of ``steps`` in the schedule."""
    model.train()
    for step in span:
        x, y = next(source)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step, steps)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def flops_per_step(model: nn.Module, batch: tuple[Tensor, ...]) -> int:
    """FLOPs of one forward and backward on ``batch``; model and global random state stay as they are."""
    probe, (x, y) = copy.deepcopy(model).train(), batch
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        F.cross_entropy(probe(x), y).backward()
    return counter.get_total_flops()
