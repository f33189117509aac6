"""The fair controls: equal training FLOPs, each with a learning rate searched for itself.

``host_on`` is the host as it was before it grew, trained on; ``static`` a network that has the grown one's size from
the start. A control is never given less than the grown run: six whole runs are searched, only the best one's FLOPs
are counted, and the choice is made on samples that no verdict on the grown run has used.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from esper.contracts.errors import ConfigError
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.row import Row, measured
from esper.evaluation.training import SCHEDULES, Recipe, batches, flops_per_step, optimizer_of, train
from esper.tasks.task import Task
from esper.tasks.weights import Weights, put_weights

RATES = (1e-3, 3e-3, 1e-2)
RECIPES = tuple(Recipe(lr, schedule) for schedule in SCHEDULES for lr in RATES)
"""What is searched."""


@dataclass(frozen=True)
class Setting:
    """What the controls share with the run that they are compared with.

    Args:
        batch_size: samples of a batch.
        seed: of first weights and order of batches.
        split_seed: of the deal of the held-out samples.
        recipes: learning rates and schedules to search.
        on_run: called with how many runs of a search are over, of how many; first with 0.
    """

    batch_size: int
    seed: int
    split_seed: int
    recipes: tuple[Recipe, ...] = RECIPES
    on_run: Callable[[int, int], None] | None = None


def host_on(task: Task, train_flops: int, setting: Setting, weights: Weights | None = None) -> Row:
    """The host from the grown run's first weights, trained for ``train_flops``.

    Args:
        task: what is learned.
        train_flops: of the grown run.
        setting: what is shared with it.
        weights: those that the grown run began with, if it did not begin with random ones.
    """

    def run(recipe: Recipe, curve: LearningCurve) -> tuple[nn.Module, int]:
        return train_new(task, 1.0, train_flops, setting, recipe, curve, weights)

    return search(task, setting, run)


def static(task: Task, train_flops: int, parameters: int, setting: Setting) -> Row:
    """A host with all hidden widths scaled by one factor to ``parameters``, trained for ``train_flops``.

    It is new: where the grown run began with trained weights, this network is given the same further FLOPs, and none
    for what those weights had cost. The row reports the parameters that it really has: widths are whole numbers.
    """
    factor = width_factor(task, parameters)
    return search(task, setting, lambda *how: train_new(task, factor, train_flops, setting, *how))


def search(task: Task, setting: Setting, run: Callable[[Recipe, LearningCurve], tuple[nn.Module, int]]) -> Row:
    """Train once per recipe; the row of the run that ends best on the *select* part.

    Args:
        task: what is learned.
        setting: with the recipes to search.
        run: trains to the end by a recipe, notes its learning curve, and gives the model and its training FLOPs. It is
            called with the global random state seeded by ``setting.seed``, which is put back afterwards.
    """
    rows: list[Row] = []
    tell = setting.on_run or (lambda done, total: None)
    tell(0, len(setting.recipes))
    for recipe in setting.recipes:
        curve = LearningCurve(task, setting.split_seed)
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[task.device] if task.device.type == "cuda" else []):
            torch.manual_seed(setting.seed)
            model, flops = run(recipe, curve)
        seconds = time.perf_counter() - started
        rows.append(
            measured(
                model,
                task,
                setting.split_seed,
                train_flops=flops,
                seconds=seconds,
                lr=recipe.lr,
                schedule=recipe.schedule,
                curve=curve.to_dict(),
            )
        )
        tell(len(rows), len(setting.recipes))
    return min(rows, key=lambda row: math.inf if math.isnan(row.val_loss) else row.val_loss)


def train_new(
    task: Task,
    factor: float,
    train_flops: int,
    setting: Setting,
    recipe: Recipe,
    curve: LearningCurve,
    weights: Weights | None = None,
) -> tuple[nn.Module, int]:
    """A host of ``factor`` times the widths, trained for as many steps as come closest to ``train_flops``.

    It begins with random weights, or with those that are given, which must be of its size.
    """
    model = task.make_host(width_factor=factor)
    if weights is not None:
        put_weights(model, weights)
    cost = flops_per_step(model, next(batches(task, setting.batch_size, setting.seed)))
    steps = max(1, round(train_flops / cost))
    source = batches(task, setting.batch_size, setting.seed)
    train(model, optimizer_of(model), source, recipe, range(steps), steps, curve, cost)
    return model, steps * cost


def width_factor(task: Task, parameters: int) -> float:
    """The factor at which the scaled host comes closest to ``parameters``.

    Raises:
        ConfigError: if the host's size does not follow its factor.
    """

    def size(factor: float) -> int:
        with torch.random.fork_rng(devices=[]):
            return sum(parameter.numel() for parameter in task.make_host(width_factor=factor).parameters())

    low = high = 1.0
    while size(high) < parameters and high < 2**20:
        high *= 2
    while size(low) > parameters and low > 2**-20:
        low /= 2
    if size(high) < parameters:
        raise ConfigError(f"The host has {size(high)} parameters however large its width_factor; wanted {parameters}.")
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) < parameters else (low, middle)
    # Rounding to whole widths is not quite monotone, so the neighbours are looked at too.
    nearby = [high * (1 + offset / 400) for offset in range(-20, 21)]
    return min([1.0, high, *nearby], key=lambda factor: abs(size(factor) - parameters))
