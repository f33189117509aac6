"""Residual networks and perceptrons, narrow and wide, on MNIST-1D and digits."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.chance.tree import Arm, Data, Tree, measured
from esper.tasks.catalogue import load_task
from esper.tasks.cnn import CNNHost
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task

BATCH, EPOCHS = 32, 60
CNN = (4, 4, 6, 8)
NARROW, WIDE = (6, 8, 12), (64, 128, 256)


def measure(seeds: int, device: str, *, is_quick: bool) -> Iterator[dict[str, Any]]:
    """Train every tree."""
    for seed in range(seeds):
        for name in ("digits", "mnist1d"):
            task = load_task(name, seed, "mlp")
            batches = Batches(task.train, seed, device)
            data = Data(batches, *(Samples(*(part.to(device) for part in one)) for one in (task.held_out, task.test)))
            epoch = math.ceil(len(task.train.y) / BATCH)
            for tree in quick_trees(task, epoch) if is_quick else trees(task, seed, epoch * EPOCHS):
                yield measured(tree, data)


def trees(task: Task, seed: int, steps: int) -> Iterator[Tree]:
    """All hosts of a task; from the start the network of the grown size for the same FLOPs."""
    ramp = 100 if task.name == "mnist1d" else 40
    for width in (*NARROW, *WIDE):
        make, wider = (MLPHost((*task.shape, one, one, task.num_classes)) for one in (width, 2 * width))
        shares = (0.05, 0.1, 0.2) if width in NARROW else (0.1,)
        arms = [Arm("hidden x2", wider, at, born) for at in shares for born in (0, ramp)]
        yield Tree(f"{task.name} perceptron, {width} wide", make, seed, 5e-3, "cosine", steps, arms=arms)
    if task.name == "mnist1d":
        small, large = _cnn(task, 1.0), _cnn(task, 4.0)
        arms = [
            Arm(f"channels x{factor:g}", _cnn(task, factor), at, born, lost)
            for factor in (1.5, 2.0)
            for at, born, lost in (
                (0.05, 0, 0),
                (0.05, ramp, 0),
                (0.1, 0, 0),
                (0.1, ramp, 0),
                (0.1, 0, 0.05),
                (0.2, 0, 0),
            )
        ]
        yield _residual("mnist1d CNN", small, seed, steps, arms)
        yield _residual("mnist1d CNN x2 from the start", _cnn(task, 2.0), seed, steps, [], small)
        yield _residual("mnist1d CNN, wide", large, seed, steps, [Arm("channels x1.5", _cnn(task, 6.0), 0.1)])


def quick_trees(task: Task, steps: int) -> Iterator[Tree]:
    """Two epochs of one host of each kind."""
    if task.name == "digits":
        wider = MLPHost((*task.shape, 16, 16, task.num_classes))
        arms = [Arm("hidden x2", wider, 0.1, 5), Arm("hidden x2", wider, 0.2, lost=0.05)]
        yield Tree("digits perceptron, 8 wide", task.make_host, 0, 5e-3, "cosine", 2 * steps, arms=arms)
    else:
        arms = [Arm("channels x1.5", _cnn(task, 1.5), 0.1)]
        yield _residual("mnist1d CNN", _cnn(task, 1.0), 0, steps, arms)


class Batches:
    """Epoch after epoch, each in an order of its own, the same for one seed.

    Args:
        samples: to deal.
        seed: deals them.
        device: where batches lie.
    """

    def __init__(self, samples: Samples, seed: int, device: str) -> None:
        self._x, self._y = (part.to(device) for part in samples)
        self._seed = seed
        self._epochs = dict[int, tuple[Tensor, ...]]()

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        epoch, place = divmod(step, math.ceil(len(self._y) / BATCH))
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(1_000_003 * (self._seed + 1) + epoch)
            self._epochs[epoch] = torch.randperm(len(self._y), generator=generator).split(BATCH)
        rows = self._epochs[epoch][place].to(self._y.device)
        return self._x[rows], self._y[rows]


def _cnn(task: Task, factor: float) -> CNNHost:
    widths = tuple(math.floor(width * factor + 0.5) for width in CNN)
    return CNNHost((1, *task.shape), task.num_classes, widths=widths)


def _residual(name: str, make: CNNHost, seed: int, steps: int, arms: list[Arm], unit: CNNHost | None = None) -> Tree:
    return Tree(name, make, seed, 3e-2, "constant_then_linear", steps, arms=arms, unit=unit)
