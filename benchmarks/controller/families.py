"""The families of the exam: data, hosts and ways to train, all fixed by one rule.

The rule deals sizes in rotation, by a family's place in the list, so that none was chosen by what a controller makes of
it. Narrow hosts take width, depth, targets per parameter, and learning rate with schedule from rows of different
lengths. The steps follow: so many that the run sees those targets, within bounds that keep it short. Wide hosts have
hundreds of units a layer and either a run of few targets for each parameter, or so few samples that more parameters
have nothing to learn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from benchmarks.controller.real_data import load
from esper.learning.generated import BOUNDARIES, Practice
from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import HostFactory, Task
from esper.tasks.text_mlp import TextMLPHost

Host = Literal["mlp", "cnn", "gpt", "text-mlp"]

WIDTHS = (4, 6, 8, 12)
"""Units of a hidden layer."""

DEPTHS = (1, 2, 3)
TARGETS = (100, 200, 400, 800, 1600)
"""For each parameter, as far as the steps allow."""

PACES = ((1e-2, "cosine"), (4e-3, "constant_then_linear"), (1e-2, "constant_then_linear"), (4e-3, "cosine"))
"""Peak learning rate and schedule; they change with every fourth family."""

LEAST_STEPS, MOST_STEPS = 20 * BOUNDARIES, 60 * BOUNDARIES
MOST_SLOW_STEPS = 30 * BOUNDARIES
"""Of convolutions and transformers, whose steps take longer."""

BATCH = {"mlp": 128, "cnn": 96, "gpt": 24, "text-mlp": 16}
"""Samples; of a text windows of 32 characters."""

WIDE_STEPS, WIDE_LR = 20 * BOUNDARIES, 1e-3


@dataclass(frozen=True)
class Family:
    """One family of the exam.

    Args:
        name: its own.
        data: name of the data set.
        host: kind of host.
        width: units of a hidden layer; channels of a convolution, and features of a token, follow from it.
        depth: hidden layers, residual stages or blocks.
        lr: peak learning rate.
        schedule: of the learning rate.
        batch_size: samples of a batch.
        targets: for each parameter; None takes ``steps``.
        steps: of the run, if ``targets`` is None.
        is_wide: whether the host has room to spare, so that growth should be refused.
    """

    name: str
    data: str
    host: Host
    width: int
    depth: int
    lr: float
    schedule: str
    batch_size: int
    targets: int | None = None
    steps: int = WIDE_STEPS
    is_wide: bool = False

    def practice(self, seed: int, folder: Path) -> Practice:
        """The run of a seed, which deals the data, the first weights and the batches.

        Args:
            seed: from 0.
            folder: of the files of the data.
        """
        task = load(self.data, seed, folder)
        task = replace(task, name=f"{self.name}-{seed}", make_host=self._host(task))
        return Practice(self.name, task, self._steps(task), self.batch_size, self.lr, self.schedule, seed)

    def _host(self, task: Task) -> HostFactory:
        hidden, outputs = (self.width,) * self.depth, len(task.labels)
        if self.host == "mlp":
            return MLPHost((task.train.x.shape[1], *hidden, outputs))
        if self.host == "text-mlp":
            return TextMLPHost(outputs, window=8, features=6, hidden=hidden)
        if self.host == "gpt":
            return GPTHost(outputs, task.shape[0], self.width, 2 * self.width, self.depth, heads=2)
        side = math.isqrt(task.shape[0])
        shape = (1, side, side) if side * side == task.shape[0] else (1, *task.shape)
        strides = tuple(1 if stage == 0 else 2 for stage in range(self.depth))
        return CNNHost(shape, outputs, (self.width // 2,) * (self.depth + 1), strides)

    def _steps(self, task: Task) -> int:
        if self.targets is None:
            return self.steps
        wanted = self.targets * parameters(task) / (self.batch_size * targets_of_sample(task))
        most = MOST_SLOW_STEPS if self.host in ("cnn", "gpt") else MOST_STEPS
        return max(LEAST_STEPS, min(most, BOUNDARIES * round(wanted / BOUNDARIES)))


def parameters(task: Task) -> int:
    """Of its host."""
    with torch.random.fork_rng(devices=[]):
        return sum(one.numel() for one in task.make_host().parameters())


def targets_of_sample(task: Task) -> int:
    """One; of a text its tokens."""
    return task.train.y[0].numel() if task.is_text else 1


def targets_per_parameter(practice: Practice) -> float:
    """What the whole run learns from, for each parameter of the host."""
    seen = practice.steps * practice.batch_size * targets_of_sample(practice.task)
    return seen / parameters(practice.task)


NARROW: Sequence[tuple[str, Host]] = (
    ("digits", "mlp"),
    ("diamonds", "mlp"),
    ("mnist1d", "cnn"),
    ("storms", "mlp"),
    ("library", "text-mlp"),
    ("credit", "mlp"),
    ("weather", "mlp"),
    ("mnist1d", "mlp"),
    ("library", "gpt"),
    ("leaves", "mlp"),
    ("churn", "mlp"),
    ("nox", "mlp"),
    ("digits", "cnn"),
    ("flights", "mlp"),
    ("manual", "text-mlp"),
    ("deliveries", "mlp"),
    ("cells", "mlp"),
    ("hotels", "mlp"),
    ("manual", "gpt"),
    ("spam", "mlp"),
    ("wages", "mlp"),
    ("baseball", "mlp"),
    ("vehicles", "mlp"),
)
"""Data and host; what they are trained with follows from the place in this list."""

FEW_TARGETS = ("digits", "mnist1d", "cells", "homes")
"""Two layers of 256 units in a short run: below one target for each parameter."""

FEW_SAMPLES = ("wine", "breast_cancer", "diabetes")
"""One layer of 128 units, some hundred samples, many epochs: no lack of targets, but the same ones again and again."""


def _narrow(index: int, data: str, host: Host) -> Family:
    lr, schedule = PACES[index // len(WIDTHS) % len(PACES)]
    return Family(
        f"{data}-{host.removeprefix('text-')}",
        data,
        host,
        WIDTHS[index % len(WIDTHS)],
        DEPTHS[index % len(DEPTHS)],
        lr,
        schedule,
        BATCH[host],
        TARGETS[index % len(TARGETS)],
    )


def _wide(data: str) -> Family:
    if data in FEW_TARGETS:
        return Family(f"{data}-wide", data, "mlp", 256, 2, WIDE_LR, "cosine", 64, is_wide=True)
    return Family(f"{data}-wide", data, "mlp", 128, 1, WIDE_LR, "cosine", 128, None, MOST_STEPS, is_wide=True)


FAMILIES: dict[str, Family] = {
    one.name: one
    for one in (
        *(_narrow(index, *what) for index, what in enumerate(NARROW)),
        *(_wide(data) for data in (*FEW_TARGETS, *FEW_SAMPLES)),
    )
}
"""By name."""
