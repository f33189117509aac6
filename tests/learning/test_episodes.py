import math
from dataclasses import replace

import pytest
import torch

from esper.contracts.commands import Answer
from esper.contracts.config import GrowthConfig
from esper.learning.episodes import WORST, Frontier, Scripted, frontier, run_episode
from esper.learning.generated import BOUNDARIES, FAMILIES, draw
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned.actions import legal_actions
from tests.learning.practising import FAILS, GROWS, SECOND, small
from tests.tamiyo.seen import NOW

CONFIG = GrowthConfig(seed=7)


def nothing(*seen):
    """Chosen at no boundary."""


@pytest.fixture(scope="module")
def never():
    """What became of ``small(7)`` where nothing was tried."""
    return run_episode(small(7), CONFIG, Scripted(CONFIG, nothing, 0))


def doing(action, at):
    """A policy that does one thing at one boundary."""
    return Scripted(CONFIG, lambda boundary, *_: action if boundary == at else None, 1)


def test_more_flops_never_buy_less():
    """Whoever has them may stop earlier."""
    alone = Frontier([1.0, 2.0, 4.0], [0.5, 0.8, 0.4])
    assert alone.at(2.0) == pytest.approx(0.5)
    assert alone.at(4.0) == pytest.approx(0.4)


def test_between_runs_the_loss_lies_on_a_line_between_logarithms():
    alone = Frontier([1.0, 4.0], [0.8, 0.2])
    assert alone.at(2.0) == pytest.approx(math.sqrt(0.8 * 0.2))


@pytest.mark.parametrize(("flops", "loss"), [(0.1, 0.8), (100.0, 0.2)])
def test_beyond_them_it_is_that_of_the_last_one(flops, loss):
    assert Frontier([1.0, 4.0], [0.8, 0.2]).at(flops) == pytest.approx(loss)


def test_what_is_saved_is_a_share_of_the_loss_for_as_many_flops():
    alone = Frontier([1.0, 4.0], [0.8, 0.2])
    assert alone.saved(0.6, 1.0) == pytest.approx(0.25)
    assert alone.saved(0.3, 4.0) == pytest.approx(WORST)
    assert alone.saved(0.25, 4.0) == pytest.approx(-0.25)


@pytest.mark.parametrize("loss", [5.0, math.inf, math.nan])
def test_nothing_counts_for_less_than_the_worst(loss):
    assert Frontier([1.0, 4.0], [0.8, 0.2]).saved(loss, 1.0) == WORST


def test_the_run_that_never_grew_saves_nothing(never):
    alone = frontier(small(7), never)
    assert alone.saved(never.loss, never.flops) == 0
    assert list(alone.flops) == sorted(alone.flops)
    assert alone.flops[0] == never.flops


def test_a_run_of_which_nothing_was_adopted_is_the_one_that_never_grew_to_the_byte(never):
    whole = run_episode(small(7), CONFIG, doing(FAILS, SECOND))
    short = run_episode(small(7), CONFIG, doing(FAILS, SECOND), never)
    assert not whole.decided[0].is_adopted
    assert whole.loss == short.loss == never.loss
    assert short.flops == pytest.approx(whole.flops, rel=1e-9)
    assert short.flops > never.flops
    assert [one.action for one in short.decided] == [one.action for one in whole.decided] == [FAILS]


def test_one_of_which_something_was_adopted_is_not_cut_short(never):
    whole = run_episode(small(7), CONFIG, doing(GROWS, SECOND))
    with_never = run_episode(small(7), CONFIG, doing(GROWS, SECOND), never)
    assert with_never.decided[0].is_adopted
    assert with_never.loss == whole.loss != never.loss
    assert (with_never.flops, with_never.parameters) == (whole.flops, whole.parameters)
    assert whole.parameters == never.parameters + whole.reports[0].parameters


def test_the_cut_takes_the_loss_that_it_is_given(never):
    """So the equality above says something: a run of another loss would be told as that."""
    other = replace(never, loss=123.0)
    assert run_episode(small(7), CONFIG, doing(FAILS, SECOND), other).loss == 123.0
    assert run_episode(small(7), CONFIG, doing(GROWS, SECOND), other).loss != 123.0


def test_while_something_is_left_to_try_it_is_not_cut_short(never):
    policy = Scripted(CONFIG, lambda boundary, *_: FAILS if boundary == SECOND else None, 2)
    run = run_episode(small(7), CONFIG, policy, replace(never, loss=123.0))
    assert run.loss == never.loss


def test_a_script_notes_every_boundary_and_what_the_heuristic_would_do(never):
    assert sorted(never.seen) == sorted(never.heuristic)
    for boundary, seen in never.seen.items():
        actions = legal_actions(seen, CONFIG)
        assert actions
        offered = HeuristicPolicy(CONFIG).decide(seen)
        index = never.heuristic[boundary]
        if index is None:
            assert not {(one.layer_id, one.blueprint) for one in offered} & named(actions)
        else:
            assert actions[index].place.layer_id in [one.layer_id for one in offered]
    assert any(index is not None for index in never.heuristic.values())


def named(actions):
    return {(one.place.layer_id, one.option.blueprint.id) for one in actions}


@pytest.mark.parametrize(("is_accepted", "noted"), [(True, 1), (False, 0)])
def test_what_is_refused_is_not_noted(is_accepted, noted):
    policy = Scripted(CONFIG, lambda *seen: 0, 1)
    (command,) = policy.decide(NOW)
    policy.answered(Answer(is_accepted, command_id=command.id))
    assert len(policy.decided) == noted


def test_a_seed_gives_the_same_task_again():
    one, again, other = draw(5), draw(5), draw(6)
    assert one.task.name == again.task.name != other.task.name
    for part in ("train", "held_out", "test"):
        a, b = getattr(one.task, part), getattr(again.task, part)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert replace(one, task=again.task) == again


def test_every_family_is_drawn():
    assert {draw(seed).family for seed in range(40)} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_host_of_every_family_can_grow(family):
    """Its first boundaries are trained; features are finite and of unit size."""
    practice = draw(3, family)
    assert practice.steps % BOUNDARIES == 0
    assert torch.isfinite(practice.task.train.x.float()).all()
    short = replace(practice, steps=BOUNDARIES, batch_size=8)
    run = run_episode(short, replace(CONFIG, seed=3), Scripted(CONFIG, nothing, 0))
    assert math.isfinite(run.loss)
    assert run.flops > 0
