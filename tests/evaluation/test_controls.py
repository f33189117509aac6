"""Controls are fair: equal FLOPs, a learning rate of their own, the same first bytes, nothing left to chance."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import RECIPES, Setting, host_on, static, train_new, width_factor
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.row import measured
from esper.evaluation.scoring import per_sample
from esper.evaluation.training import SCHEDULES, Recipe, batches, flops_per_step, train
from esper.runtime.training.loader import BatchLoader
from esper.tasks.task import Task


def recipes(*rates: float) -> tuple[Recipe, ...]:
    """Every schedule at every rate."""
    return tuple(Recipe(lr, schedule) for schedule in SCHEDULES for lr in rates)


SETTING = Setting(batch_size=16, seed=3, split_seed=5, recipes=recipes(1e-4, 1e-2))


def _cost(task: Task) -> int:
    return flops_per_step(task.make_host(), next(batches(task, 16, 3)))


def test_flops_of_a_step_are_those_of_forward_and_backward(task):
    """2 per multiply-add: forward, gradient of weights, and gradient of inputs but for the first layer."""
    shapes = list(itertools.pairwise(task.make_host.widths))
    macs = [16 * a * b for a, b in shapes]
    assert _cost(task) == 2 * (3 * sum(macs) - macs[0])


def test_counting_flops_changes_neither_model_nor_random_state(task):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), task.make_host())
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    flops_per_step(model, next(batches(task, 16, 3)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("budget", [1.0, 37.4, 100.0])
def test_training_flops_are_the_budget_to_the_nearest_step(task, budget):
    cost = _cost(task)
    _, flops = train_new(task, 1.0, round(budget * cost), SETTING, Recipe(1e-3, "cosine"), LearningCurve(task, 5))
    assert flops == round(budget) * cost


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_starts_at_its_peak_and_ends_at_zero(schedule):
    rates = [Recipe(0.1, schedule).rate(step, 100) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[100] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_the_host_trained_on_is_plain_training_from_the_runs_first_weights(task):
    row = host_on(task, 60 * _cost(task), Setting(batch_size=16, seed=3, split_seed=5, recipes=recipes(1e-2)))

    torch.manual_seed(3)
    model = task.make_host()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, fused=True)
    loader, step = BatchLoader(task.train, 16, 3), 0
    while step < 60:
        for x, y in loader:
            if step == 60:
                break
            optimizer.param_groups[0]["lr"] = Recipe(1e-2, row.schedule).rate(step, 60)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            step += 1
    losses, correct = per_sample(model, task.test)
    assert row.test_loss == float(losses.double().mean())
    assert row.test_metric == float(correct.double().mean())


def test_the_best_run_on_the_select_part_is_taken(task):
    row = host_on(task, 300 * _cost(task), SETTING)
    worse = host_on(task, 300 * _cost(task), Setting(16, 3, 5, recipes=recipes(1e-4)))
    assert row.lr == 1e-2
    assert row.val_loss < worse.val_loss


def test_a_diverged_run_is_never_the_best(task):
    row = host_on(task, 50 * _cost(task), Setting(16, 3, 5, recipes=recipes(1e30, 1e-3)))
    assert row.lr == 1e-3


def test_controls_are_deterministic_and_leave_the_random_state_alone(task):
    budget = 40 * _cost(task)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = static(task, budget, 400, SETTING).to_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert static(task, budget, 400, SETTING).to_dict() | {"seconds": 0} == first | {"seconds": 0}


def test_static_has_the_size_and_the_flops_that_were_asked_for(task):
    budget = 400 * _cost(task)
    row = static(task, budget, 500, SETTING)
    assert abs(row.parameters / 500 - 1) <= 0.02
    assert abs(row.train_flops / budget - 1) <= 0.01


def test_static_without_growth_is_the_host(task):
    host = sum(p.numel() for p in task.make_host().parameters())
    assert width_factor(task, host) == 1.0


@pytest.mark.parametrize("parameters", [60, 1_000, 20_000])
def test_the_width_factor_finds_the_closest_size(task, parameters):
    sizes = [sum(p.numel() for p in task.make_host(f / 50).parameters()) for f in range(5, 1000)]
    found = sum(p.numel() for p in task.make_host(width_factor(task, parameters)).parameters())
    assert abs(found - parameters) <= min(abs(size - parameters) for size in sizes)


def test_a_host_that_ignores_its_factor_is_refused(task):
    stubborn = Task(**vars(task) | {"make_host": lambda width_factor=1.0: nn.Linear(6, 2)})
    with pytest.raises(ConfigError, match="14 parameters however large"):
        width_factor(stubborn, 1000)


def test_a_row_is_measured_on_select_and_test_in_eval_mode(task):
    model = nn.Sequential(nn.Dropout(0.9), task.make_host()).train()
    rows = [measured(model, task, 5, train_flops=1, seconds=0.0, lr=1.0, schedule="cosine") for _ in range(2)]
    assert rows[0] == rows[1]
    assert model.training
    assert rows[0].val_metric * 20 == pytest.approx(round(rows[0].val_metric * 20))  # a fifth of 100 samples


def test_what_is_not_finite_becomes_none(task):
    model = task.make_host()
    model[0].weight.data.fill_(float("nan"))
    row = measured(model, task, 5, train_flops=1, seconds=0.0, lr=1.0, schedule="cosine").to_dict()
    assert row["val_loss"] is None
    assert row["test_loss"] is None


def test_training_goes_through_the_given_steps_of_the_schedule(task):
    model, seen = task.make_host(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=9.0)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    train(
        model,
        optimizer,
        batches(task, 16, 3),
        Recipe(1.0, "constant_then_linear"),
        range(6, 10),
        10,
        LearningCurve(task, 5),
        7,
    )
    assert seen == pytest.approx([1.0, 1.0, 2 / 3, 1 / 3])


def test_a_search_tells_how_far_it_is(task):
    told = []
    setting = Setting(16, 3, 5, recipes=recipes(1e-3, 1e-2), on_run=lambda done, total: told.append((done, total)))
    host_on(task, 3 * _cost(task), setting)
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_unless_told_otherwise_every_rate_is_searched_on_every_schedule():
    assert Setting(16, 3, 5).recipes == RECIPES
    assert {(one.lr, one.schedule) for one in RECIPES} == set(itertools.product((1e-3, 3e-3, 1e-2), SCHEDULES))
    assert len(RECIPES) == 6
