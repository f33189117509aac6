"""Grafts from the first step: the host's function at the start, everything trainable, the sizes that were asked for."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from esper.evaluation.adapters import everywhere
from esper.evaluation.controls import Setting, host_on
from esper.evaluation.planted import Planted, Planting, planted
from esper.evaluation.training import Recipe, batches, flops_per_step
from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.task import Samples, Task
from tests.few import few

SETTING = Setting(16, 3, 5, recipes=(Recipe(1e-2, "cosine"),))


def _tokens(n: int) -> Samples:
    generator = torch.Generator().manual_seed(n)
    return Samples(*(torch.randint(7, (n, 16), generator=generator) for _ in range(2)))


@pytest.fixture
def images(task) -> Task:
    parts = {name: Samples(torch.randn(n, 64), torch.arange(n) % 3) for name, n in (("train", 200), ("held_out", 100))}
    return replace(task, **parts, test=parts["held_out"], make_host=CNNHost((1, 8, 8), 3), labels=("0", "1", "2"))


@pytest.fixture
def text(task) -> Task:
    parts = {"train": _tokens(64), "held_out": _tokens(50), "test": _tokens(40)}
    return replace(task, **parts, make_host=GPTHost(7, 16), labels=tuple("abcdefg"))


PLACES = {
    "task": [Planting("", "all", "bottleneck_mlp", {"hidden": 5}), Planting("2", 0, "bottleneck_mlp", {"hidden": 2})],
    "images": [
        Planting("stages.1", "all", "conv_bottleneck", {"hidden": 3}),
        Planting("head", "all", "bottleneck_mlp"),
    ],
    "text": [Planting("blocks.0:blocks.2", "all", "sliding_conv", {"hidden": 3})],
}


def _built(task: Task, plantings: list[Planting]) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The bare host, and the one with grafts."""
    factory = Planted(task, tuple(plantings), SETTING)
    built = []
    for make in (task.make_host, factory):
        torch.manual_seed(3)
        built.append(make())
    return built[0], built[1]


def _step(model: torch.nn.Module, task: Task) -> None:
    x, y = task.train
    F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()


@pytest.mark.parametrize("name", PLACES)
def test_before_training_it_computes_what_the_bare_host_does(name, request):
    task = request.getfixturevalue(name)
    host, model = _built(task, PLACES[name])
    assert torch.equal(model.eval()(task.test.x), host.eval()(task.test.x))


@pytest.mark.parametrize("name", PLACES)
def test_everything_in_it_trains(name, request):
    task = request.getfixturevalue(name)
    host, model = _built(task, PLACES[name])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert len(before) > len(list(host.parameters()))
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        _step(model, task)
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_two_grafts_may_share_a_place(task):
    one = Planting("", "all", "bottleneck_mlp", {"hidden": 5})
    sizes = [sum(p.numel() for p in _built(task, grafts)[1].parameters()) for grafts in ([], [one], [one, one])]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


def test_it_is_given_the_flops_that_were_asked_for_and_other_results_than_the_host(task):
    budget = 100 * flops_per_step(task.make_host(), next(batches(task, 16, 3)))
    row = planted(task, PLACES["task"], budget, SETTING)
    assert abs(row.train_flops / budget - 1) <= 0.02
    assert row.test_loss != host_on(task, budget, SETTING).test_loss


def test_nothing_planted_is_the_host_trained_on(task):
    budget = 100 * flops_per_step(task.make_host(), next(batches(task, 16, 3)))
    bare, host = planted(task, [], budget, SETTING), host_on(task, budget, SETTING)
    assert bare.to_dict() | {"seconds": 0} == host.to_dict() | {"seconds": 0}


@pytest.mark.parametrize("name", few(PLACES, ["images"]))
def test_adapters_lie_behind_every_layer_and_block_and_have_the_size(name, request):
    task = request.getfixturevalue(name)
    host = sum(p.numel() for p in task.make_host().parameters())
    found = everywhere(task, 3 * host, SETTING)
    widths = [one.settings["hidden"] for one in found]
    assert max(widths) - min(widths) <= 1
    model = _built(task, found)[1]
    assert abs(sum(p.numel() for p in model.parameters()) / (3 * host) - 1) <= 0.02
    layers = {module for module, child in task.make_host().named_modules() if isinstance(child, torch.nn.Linear)}
    assert layers <= {one.layer_id for one in found}


def test_a_run_that_grew_nothing_leaves_no_room_for_adapters(task):
    assert everywhere(task, sum(p.numel() for p in task.make_host().parameters()), SETTING) == []
