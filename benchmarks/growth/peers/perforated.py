"""Perforated AI: dendrites are added to the layers of a trained host, and all of it is trained on.

The open part of ``perforatedai`` (dendrites trained by plain gradients), by its documented loop: a tracker is given a
validation score after every epoch, adds dendrites when it switches, and in the end gives back the network that scored
best. It is told to switch when the first graft of the grown run was born, and again at even distances if the size asks
for more dendrites: left to itself it waits for a plateau and ends when it likes, which no budget of FLOPs could follow.
Scores are losses on the *select* part, and their FLOPs count. (The library would rather have accuracies, but those of
some hundred samples are so coarse that it gives dendrites up for a single one.)
"""

import contextlib
import io
import itertools
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.growth.peers.budget import Budget
from benchmarks.growth.peers.goal import Goal, perceptron
from esper.evaluation.controls import Setting
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.scoring import per_sample
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of
from esper.runtime.costs.flops import count
from esper.runtime.judging.worth import split_samples
from esper.tasks.task import Samples, Task

MOST_DENDRITES = 4
"""Of one neuron."""


def perforated(task: Task, goal: Goal, setting: Setting, recipe: Recipe, curve: LearningCurve) -> tuple[nn.Module, int]:
    """A host from the global random state, to which dendrites are added.

    Returns:
        The network that scored best, and the training FLOPs. Where a neuron has two dendrites or more, its parameters
        include a few that the library keeps without using them.

    Raises:
        ConfigError: if the host is no perceptron.
    """
    with torch.random.fork_rng(devices=[]):
        linear = perceptron(task, "Perforated AI")
    chosen, dendrites = plan(linear, goal.parameters)
    budget = Budget(goal.train_flops, recipe, curve)
    with apart():
        model, tracker = with_scaffold(task.make_host(), chosen, dendrites)
        source = batches(task, setting.batch_size, setting.seed)
        sample = next(batches(task, setting.batch_size, setting.seed))
        epoch = len(task.train.y) // setting.batch_size
        select = _select(task, setting.split_seed)
        ends = [goal.birth + (1 - goal.birth) * index / dendrites for index in range(dendrites + 1)]
        is_over = False
        for end in ends:
            tracker.set_optimizer_instance(optimizer := optimizer_of(model))
            cost, judging = flops_per_step(model, sample), count(partial(_score, model, select))
            while not is_over:
                left = budget.steps_until(end, cost, reserve=judging)
                is_last = left < 1.5 * epoch
                budget.train(model, optimizer, source, max(1, left) if is_last else epoch, cost)
                score = budget.probe(partial(_score, model, select))
                model, _, is_over = tracker.add_validation_score(score, model, force_switch=is_last)
                if is_last:
                    break
        # The tracker ends early where added dendrites did not help; what is left of the FLOPs is spent all the same.
        cost = flops_per_step(model, sample)
        budget.train(model, optimizer_of(model), source, budget.steps_until(1.0, cost), cost)
    return without_scaffold(model), budget.spent


def plan(linear: list[nn.Linear], parameters: int) -> tuple[list[bool], int]:
    """Which layers get dendrites, and how many each neuron, to come closest to ``parameters``; rather more layers."""
    sizes = [[_size(layer, dendrites) for layer in linear] for dendrites in range(MOST_DENDRITES + 1)]

    def distance(choice: tuple[list[bool], int]) -> tuple[int, int]:
        chosen, dendrites = choice
        size = sum(sizes[dendrites if one else 0][index] for index, one in enumerate(chosen))
        return abs(size - parameters), -sum(chosen)

    subsets = [list(chosen) for chosen in itertools.product((True, False), repeat=len(linear)) if any(chosen)]
    return min(itertools.product(subsets, range(1, MOST_DENDRITES + 1)), key=distance)


def _size(layer: nn.Linear, dendrites: int) -> int:
    """Parameters of a layer with its dendrites, each of which also feeds the neuron and the dendrites after it."""
    own = sum(parameter.numel() for parameter in layer.parameters())
    links = dendrites + dendrites * (dendrites - 1) // 2
    return own * (1 + dendrites) + layer.out_features * links


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """In a temporary folder, because the tracker keeps its best network as a file; silent."""
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy keyword")
        yield


def with_scaffold(host: nn.Module, chosen: list[bool], dendrites: int) -> tuple[nn.Module, Any]:
    """The host, ready for dendrites, and the tracker that adds them. The library's settings are global: all are set."""
    from perforatedai import globals_perforatedai, utils_perforatedai

    names = [name for name, layer in host.named_children() if isinstance(layer, nn.Linear)]
    settings = globals_perforatedai.pc
    settings.set_device(torch.device("cpu"))
    settings.set_use_cuda(False)
    settings.set_silent(True)
    settings.set_dashboard_events_enabled(False)
    settings.set_perforated_backpropagation(False)
    settings.set_testing_dendrite_capacity(False)
    settings.set_configuration_confirmed(True)
    settings.set_unwrapped_modules_confirmed(True)
    settings.set_switch_mode(settings.DOING_NO_SWITCH)
    settings.set_max_dendrites(dendrites)
    settings.set_max_dendrite_tries(1)
    settings.set_module_ids_to_track([f".{name}" for name, one in zip(names, chosen, strict=True) if not one])
    model = utils_perforatedai.perforate_model(host, save_name="run", making_graphs=False, maximizing_score=False)
    return model, globals_perforatedai.pai_tracker


def without_scaffold(model: nn.Module) -> nn.Module:
    """The network without the copies of layers that further dendrites would be made of.

    The library's own ``prepare_final_model`` (3.2.9) changes what a network with one dendrite per neuron computes.
    """
    scaffold = [name for name, _ in model.named_modules() if name.endswith(".parent_module")]
    for name in scaffold:
        model.set_submodule(name, nn.Identity())
    return model


def _select(task: Task, split_seed: int) -> Samples:
    select = split_samples(len(task.held_out.y), task.groups, split_seed).select
    return Samples(task.held_out.x[select], task.held_out.y[select])


def _score(model: nn.Module, samples: Samples) -> float:
    losses, _ = per_sample(model, samples)
    return float(losses.double().mean())
