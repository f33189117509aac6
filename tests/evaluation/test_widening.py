"""Widening, the classic way to grow: the function stays, and so does the optimizer's memory of old weights."""

import pytest
import torch
import torch.nn.functional as F

from esper.contracts.errors import ConfigError
from esper.evaluation.controls import Setting, host_on
from esper.evaluation.training import SCHEDULES, Recipe, batches, flops_per_step, optimizer_of
from esper.evaluation.widening import transplant, widened
from esper.tasks.mlp import MLPHost, mlp
from esper.tasks.task import Samples, Task


@pytest.fixture
def grown():
    """An old network that was trained a little, and a wide one that took its place."""
    torch.manual_seed(0)
    old, wide = mlp((6, 8, 8, 3)), mlp((6, 13, 12, 3))
    optimizer, wide_optimizer = optimizer_of(old), optimizer_of(wide)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(old(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()
    transplant(old, optimizer, wide, wide_optimizer)
    return old, optimizer, wide, wide_optimizer


def test_the_function_is_preserved(grown):
    old, _, wide, _ = grown
    x = torch.randn(32, 6)
    torch.testing.assert_close(wide(x), old(x))


def test_new_units_read_at_random_and_write_nothing_into_old_ones(grown):
    _, _, wide, _ = grown
    assert (wide[0].weight[8:] != 0).all()
    assert (wide[2].weight[:8, 8:] != 0).sum() == 0
    assert (wide[2].weight[8:] != 0).all()
    assert (wide[4].weight[:, 8:] != 0).sum() == 0


def test_optimizer_state_is_kept_for_old_weights_and_zero_for_new_ones(grown):
    old, optimizer, wide, wide_optimizer = grown
    before, after = optimizer.state[old[2].weight], wide_optimizer.state[wide[2].weight]
    assert after["step"] == before["step"] == 5
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[name][:8, :8], before[name])
        assert after[name][8:].count_nonzero() == after[name][:, 8:].count_nonzero() == 0


def test_new_units_can_learn(grown):
    _, _, wide, wide_optimizer = grown
    for _ in range(3):
        wide_optimizer.zero_grad()
        F.cross_entropy(wide(torch.randn(64, 6)), torch.randint(3, (64,))).backward()
        wide_optimizer.step()
    assert (wide[4].weight[:, 8:] != 0).any()
    assert (wide[2].weight[:8, 8:] != 0).any()


@pytest.mark.parametrize("widths", [(6, 7, 9, 3), (6, 8, 3), (6, 9, 9, 9, 3)])
def test_a_narrower_or_deeper_network_cannot_take_the_place(widths):
    old, wide = mlp((6, 8, 8, 3)), mlp(widths)
    with pytest.raises(ConfigError, match="same depth"):
        transplant(old, optimizer_of(old), wide, optimizer_of(wide))


def test_a_widened_run_has_the_size_and_the_flops_that_were_asked_for():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator)
    parts = [Samples(x[rows], (x[rows, 0] > 0).long()) for rows in torch.arange(300).split(100)]
    names = {"labels": ("0", "1"), "shape": (6,)}
    task = Task("sign", *parts, make_host=MLPHost((6, 8, 8, 2)), **names)
    setting = Setting(batch_size=16, seed=0, split_seed=0, recipes=tuple(Recipe(1e-2, name) for name in SCHEDULES))
    budget = 300 * flops_per_step(task.make_host(), next(batches(task, 16, 0)))
    row = widened(task, budget, 500, birth_step=50, setting=setting)
    assert abs(row.parameters / 500 - 1) <= 0.02
    assert abs(row.train_flops / budget - 1) <= 0.01
    unwidened = host_on(task, budget, setting)
    assert widened(task, budget, unwidened.parameters, 50, setting).test_loss == unwidened.test_loss
