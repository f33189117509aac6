"""GroMo: a small perceptron whose hidden layers widen while it trains.

Growth by Verbockhaven et al., "Growing tiny networks: spotting expressivity bottlenecks and fixing them optimally",
TMLR 2024 (TINY), with the settings that GroMo documents for it. (GroMo's settings for GradMax begin new neurons with
incoming weights of zero: behind a ReLU, whose slope at 0 torch takes as 0, they would stay dead.) The loop is that of
GroMo's tutorial on containers: after every third epoch one layer grows, the layers in turn and each twice; statistics
and line search use all training samples.
"""

import copy
import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.growth.peers.budget import Budget
from benchmarks.growth.peers.goal import Goal, perceptron
from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, width_factor
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of
from esper.runtime.costs.flops import count
from esper.tasks.task import Samples, Task

EPOCHS_BETWEEN = 3
VISITS = 2
FACTORS = (0.0, 0.1, 0.5, 1.0)
LAST_BIRTH = 0.5
"""Share of the FLOPs by which all growing is over, whatever is missing."""


def gromo(task: Task, goal: Goal, setting: Setting, recipe: Recipe, curve: LearningCurve) -> tuple[nn.Module, int]:
    """A perceptron from the global random state, which grows towards the widths of the static control.

    Returns:
        The grown network, and its training FLOPs with those of statistics and line search. (torch's counter does not
        see the decompositions of GroMo's small matrices, in its favour.)

    Raises:
        ConfigError: if the host is no perceptron, or its hidden layers differ in width.
    """
    model = growing_host(task)
    wanted = _hidden_widths(task, goal.parameters)
    births = _Births(model, wanted)
    source = batches(task, setting.batch_size, setting.seed)
    sample = next(batches(task, setting.batch_size, setting.seed))
    budget = Budget(goal.train_flops, recipe, curve)
    pause = EPOCHS_BETWEEN * (len(task.train.y) // setting.batch_size)
    # A budget of a few epochs still has room for every birth.
    share = LAST_BIRTH / (VISITS * len(wanted))
    while births.missing():
        cost = flops_per_step(model, sample)
        steps = min(pause, budget.steps_until(budget.spent / budget.total + share, cost))
        budget.train(model, optimizer_of(model), source, steps, cost)
        rehearsal = count(lambda: copy.deepcopy(births).next(task.train))
        if budget.spent + rehearsal > LAST_BIRTH * budget.total:
            break
        budget.probe(lambda: births.next(task.train))
    cost = flops_per_step(model, sample)
    budget.train(model, optimizer_of(model), source, max(1, budget.steps_until(1.0, cost)), cost)
    return model, budget.spent


class _Births:
    """Widens the hidden layers of ``model``, one after the other, until they are as wide as wanted."""

    def __init__(self, model: nn.Module, wanted: list[int]) -> None:
        self._model, self._wanted = model, wanted
        self._at_once = [math.ceil(neurons / VISITS) for neurons in self._missing_by_layer()]
        self._turn = -1

    def missing(self) -> int:
        """Neurons in all hidden layers."""
        return sum(self._missing_by_layer())

    def next(self, samples: Samples) -> None:
        """Grow the layer whose turn it is by the factor that lowers the training loss most; not at all by 0."""
        missing = self._missing_by_layer()
        layers = range(len(missing))
        layer = self._turn = next(index for index in [*layers[self._turn + 1 :], *layers] if missing[index])
        model = self._model.eval()
        model.set_growing_layers(index=layer)
        model.init_computation()
        model.zero_grad()
        F.cross_entropy(model(samples.x), samples.y, reduction="sum").backward()
        model.update_computation()
        with warnings.catch_warnings():
            # Pixels that are always 0 make the covariance singular; GroMo tells that it then goes on without inverting.
            warnings.filterwarnings("ignore", message="Using the pseudo-inverse")
            model.compute_optimal_updates(
                maximum_added_neurons=min(self._at_once[layer], missing[layer]), compute_delta=False
            )
        model.reset_computation()
        model.zero_grad()
        model.dummy_select_update()
        losses = {factor: self._loss(factor, samples) for factor in FACTORS}
        best = min(losses, key=losses.__getitem__)
        if best:
            model.set_scaling_factor(best)
            model.apply_change()
        else:
            model.currently_updated_layer.delete_update()

    @torch.no_grad()
    def _loss(self, factor: float, samples: Samples) -> float:
        self._model.set_scaling_factor(factor)
        logits: Tensor = self._model.extended_forward(samples.x)
        return float(F.cross_entropy(logits, samples.y))

    def _missing_by_layer(self) -> list[int]:
        return [
            max(0, wanted - layer.out_features)
            for layer, wanted in zip(self._model.layers[:-1], self._wanted, strict=True)
        ]


def growing_host(task: Task) -> nn.Module:
    """The task's host as GroMo has it, of the same first weights."""
    linear = perceptron(task, "GroMo")
    widths = {layer.out_features for layer in linear[:-1]}
    if len(widths) != 1:
        raise ConfigError(f"GroMo's perceptron has hidden layers of one width; the host of {task.name} has {widths}.")
    from gromo.containers.growing_mlp import GrowingMLP

    model = GrowingMLP(
        in_features=linear[0].in_features,
        out_features=linear[-1].out_features,
        hidden_size=widths.pop(),
        number_hidden_layers=len(linear) - 1,
        activation=nn.ReLU(),
        device=torch.device("cpu"),
    )
    for own, layer in zip(model.layers, linear, strict=True):
        own.layer.load_state_dict(layer.state_dict())
    return model


def _hidden_widths(task: Task, parameters: int) -> list[int]:
    """Hidden widths of the static control of ``parameters``."""
    factor = width_factor(task, parameters)
    with torch.random.fork_rng(devices=[]):
        scaled = task.make_host(width_factor=factor)
    return [layer.out_features for layer in scaled.children() if isinstance(layer, nn.Linear)][:-1]
