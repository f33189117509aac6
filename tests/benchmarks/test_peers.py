"""The neighbours, each through its own package; a test of a package that is not installed is skipped."""

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.growth.peers import PACKAGES, PEERS, Goal, missing
from benchmarks.growth.peers.budget import Budget
from benchmarks.growth.peers.gromo import growing_host
from benchmarks.growth.peers.lora import lora
from benchmarks.growth.peers.perforated import apart, plan, with_scaffold, without_scaffold
from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, width_factor
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import Recipe, batches, flops_per_step, optimizer_of
from esper.tasks.catalogue import load_task
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Task

RECIPE = Recipe(1e-2, "cosine")
SETTING = Setting(batch_size=32, seed=0, split_seed=0)
GOAL = Goal(train_flops=200_000_000, parameters=1200, birth=0.2)
each_peer = pytest.mark.parametrize("name", PEERS)


@pytest.fixture(scope="module")
def digits() -> Task:
    return load_task("digits", 0, "mlp")


def trained(name: str, task: Task, goal: Goal = GOAL, seed: int = 0) -> tuple[nn.Module, int, LearningCurve]:
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    curve = LearningCurve(task, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, flops = PEERS[name](task, goal, SETTING, RECIPE, curve)
    return model, flops, curve


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def accuracy(model: nn.Module, task: Task) -> float:
    return float((model.eval()(task.test.x).argmax(-1) == task.test.y).double().mean())


@each_peer
def test_a_peer_spends_the_flops_of_the_grown_run(digits, name):
    model, flops, curve = trained(name, digits)
    assert abs(flops - GOAL.train_flops) <= flops_per_step(model, next(batches(digits, 32, 0)))
    assert curve.flops == sorted(set(curve.flops))
    assert curve.flops[-1] <= flops


@each_peer
def test_a_peer_learns_and_comes_to_about_the_size_that_is_asked_for(digits, name):
    model, _, _ = trained(name, digits)
    assert accuracy(model, digits) > 0.6
    assert size(model) == pytest.approx(GOAL.parameters, rel=0.05)


@each_peer
def test_the_same_seed_gives_the_same_network_and_another_seed_another(digits, name):
    first, again, other = (trained(name, digits, seed=seed)[0].eval() for seed in (0, 0, 1))
    x = digits.test.x
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


@each_peer
def test_a_peer_prints_nothing_and_leaves_no_file(digits, name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    trained(name, digits, replace(GOAL, train_flops=10_000_000))
    assert Path.cwd() == tmp_path
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


LISTENING = """
import socket, sys, warnings
asked = []
sys.addaudithook(lambda event, _: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
warnings.simplefilter("error")
from benchmarks.growth.peers import PEERS, Goal
from esper.evaluation.controls import Setting
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import Recipe
from esper.tasks.catalogue import load_task
task = load_task("digits", 0, "mlp")
setting = Setting(batch_size=32, seed=0, split_seed=0)
for name in sys.argv[1:]:
    PEERS[name](task, Goal(10_000_000, 1200, 0.2), setting, Recipe(1e-2, "cosine"), LearningCurve(task, 0))
during = list(asked)
with socket.socket() as own:
    own.connect_ex(("127.0.0.1", 9))
print(during, asked)
"""


@pytest.mark.long
def test_peers_ask_nothing_of_the_network():
    """The connection that the script then tries itself is seen."""
    installed = [name for name, package in PACKAGES.items() if find_spec(package) is not None]
    if not installed:
        pytest.skip("no peer is installed")
    command = [sys.executable, "-c", LISTENING, *installed]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "[] ['socket.connect']\n", done.stderr


@each_peer
def test_a_package_that_is_not_installed_is_named_with_the_way_to_install_it(name):
    told = missing(name)
    assert (told is None) == (find_spec(PACKAGES[name]) is not None)
    assert told is None or (told.startswith(PACKAGES[name]) and "pip install" in told)


@pytest.mark.parametrize("name", ["gromo", "perforated"])
def test_a_host_that_a_peer_cannot_take_is_an_error(name):
    with pytest.raises(ConfigError, match="only compared on perceptrons"):
        PEERS[name](load_task("mnist1d", 0, "cnn"), GOAL, SETTING, RECIPE, None)


@pytest.mark.parametrize("birth", [-0.1, 1.0])
def test_a_birth_outside_the_run_is_an_error(birth):
    with pytest.raises(ConfigError, match="birth"):
        Goal(1, 1, birth)


@pytest.mark.parametrize("name", ["lora", "perforated"])
def test_growing_from_the_first_step_keeps_the_flops_too(digits, name):
    """At least one step comes before."""
    goal = replace(GOAL, birth=0.0, train_flops=20_000_000)
    _, flops, _ = trained(name, digits, goal)
    assert flops == pytest.approx(goal.train_flops, rel=0.01)


def test_lora_trains_its_adapters_and_no_weight_of_the_host(digits):
    model, _, _ = trained("lora", digits)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert trainable
    reference = MLPHost((64, 8, 8, 10))
    assert size(model) - sum(model.get_parameter(name).numel() for name in trainable) == size(reference())


def test_lora_adapts_the_linear_layers_of_other_hosts_too():
    pytest.importorskip("peft")
    task = load_task("mnist1d", 0, "cnn")
    goal = Goal(train_flops=30_000_000, parameters=1100, birth=0.5)
    model, _ = lora(task, goal, SETTING, RECIPE, LearningCurve(task, 0))
    assert size(model) > size(task.make_host())


def test_gromo_grows_to_the_widths_of_the_static_control(digits):
    model, _, _ = trained("gromo", digits)
    static = digits.make_host(width_factor=width_factor(digits, GOAL.parameters))
    assert size(model) == size(static)


def test_gromo_grows_nothing_where_the_host_is_as_large_as_the_grown_run(digits):
    host = digits.make_host()
    model, _, _ = trained("gromo", digits, replace(GOAL, parameters=size(host)))
    assert size(model) == size(host)


def test_gromo_adds_nothing_where_no_factor_lowers_the_training_loss(digits, monkeypatch):
    monkeypatch.setattr(import_module("benchmarks.growth.peers.gromo"), "FACTORS", (0.0,))
    model, flops, _ = trained("gromo", digits)
    assert size(model) == size(digits.make_host())
    assert flops == pytest.approx(GOAL.train_flops, rel=0.01)
    assert accuracy(model, digits) > 0.6


def test_gromos_network_begins_as_the_host(digits):
    pytest.importorskip("gromo")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        host = digits.make_host()
        torch.manual_seed(3)
        model = growing_host(digits)
    assert torch.equal(model(digits.test.x), host(digits.test.x))


def test_gromo_takes_no_perceptron_whose_layers_differ_in_width(digits):
    pytest.importorskip("gromo")
    uneven = replace(digits, make_host=MLPHost((64, 8, 12, 10)))
    with pytest.raises(ConfigError, match="one width"):
        growing_host(uneven)


def test_gromo_does_not_grow_where_the_budget_has_no_room_for_it(digits):
    goal = replace(GOAL, train_flops=10_000_000)
    model, flops, _ = trained("gromo", digits, goal)
    assert size(model) == size(digits.make_host())
    assert flops <= 1.01 * goal.train_flops


@pytest.mark.parametrize(
    ("parameters", "chosen", "dendrites"),
    [
        (682, [False, True, False], 1),
        (1390, [True, True, True], 1),
        (1210, [True, False, False], 1),
        (1956, [True, False, True], 2),
    ],
)
def test_dendrites_are_planned_to_come_closest_to_the_size(digits, parameters, chosen, dendrites):
    linear = [layer for layer in digits.make_host() if isinstance(layer, nn.Linear)]
    assert plan(linear, parameters) == (chosen, dendrites)


@pytest.mark.parametrize(("parameters", "dendrites"), [(1390, 1), (1210, 1), (1956, 2)])
def test_a_network_with_dendrites_computes_the_same_without_its_scaffold(digits, parameters, dendrites):
    pytest.importorskip("perforatedai")
    x = digits.test.x
    chosen, planned = plan([layer for layer in digits.make_host() if isinstance(layer, nn.Linear)], parameters)
    assert planned == dendrites
    with apart():
        model, tracker = with_scaffold(digits.make_host(), chosen, dendrites)
        for score in range(dendrites):
            tracker.set_optimizer_instance(optimizer_of(model))
            model(x).sum().backward()
            model, _, _ = tracker.add_validation_score(1.0 / (1 + score), model, force_switch=True)
    model.eval()
    before = model(x)
    scaffolded = size(model)
    plain = without_scaffold(model)
    assert torch.equal(plain(x), before)
    assert not torch.equal(digits.make_host()(x), before)
    assert size(plain) < scaffolded
    assert size(plain) == pytest.approx(parameters, rel=0.02)


def test_a_budget_follows_the_recipe_by_the_share_that_is_spent(digits):
    """What a probe costs is spent too, so that fewer steps are left."""
    model = digits.make_host()
    source = batches(digits, 32, 0)
    sample = next(source)
    cost = flops_per_step(model, sample)
    budget = Budget(10 * cost, RECIPE, LearningCurve(digits, 0))
    assert budget.steps_until(1.0, cost) == 10
    budget.probe(lambda: [model(sample[0]) for _ in range(3)])
    assert budget.spent > 0
    assert budget.steps_until(1.0, cost) < 10
    optimizer = optimizer_of(model)
    budget.train(model, optimizer, source, budget.steps_until(1.0, cost), cost)
    last = budget.spent - cost
    assert optimizer.param_groups[0]["lr"] == pytest.approx(RECIPE.rate(last, budget.total))
    assert budget.steps_until(1.0, cost) == 0
