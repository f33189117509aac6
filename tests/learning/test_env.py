import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from esper.blueprints.catalogue import CATALOGUE
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, DataError, TransitionError
from esper.learning.arrays import MOST, PLACES, offer, padded
from esper.learning.env import GrowthEnv
from esper.learning.episodes import Scripted, run_episode
from esper.learning.paused import paused
from esper.learning.playing import Frontiers, play
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import STOP, WAIT, Padded
from esper.tamiyo.learned.tokens import tokens
from tests.learning.practising import FAILS, GROWS, SECOND, broken, idle, small
from tests.tamiyo.seen import NOW, place

TRY = 2


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder of frontiers."""
    return tmp_path_factory.mktemp("frontiers")


def played(env, seed, choices):
    """Observations, rewards and the last info of an episode; after the choices it waits."""
    seen, info = env.reset(seed=seed)
    shown, rewards, is_over, choices = [seen], [], False, list(choices)
    while not is_over:
        seen, reward, terminated, truncated, info = env.step(choices.pop(0) if choices else WAIT)
        shown.append(seen)
        rewards.append(reward)
        is_over = terminated or truncated
    return shown, rewards, info


def test_gymnasium_finds_no_fault_with_it():
    env = GrowthEnv(make_practice=small)
    check_env(env, skip_render_check=True)
    env.close()


def test_a_seed_and_actions_give_the_same_episode_again_whatever_is_drawn_meanwhile(known):
    first, rewards, info = played(GrowthEnv(make_practice=small, folder=known), 7, [WAIT, TRY + GROWS, STOP])
    torch.manual_seed(99)
    env = GrowthEnv(make_practice=small, folder=known)
    seen, _ = env.reset(seed=7)
    again = [seen]
    for choice in (WAIT, TRY + GROWS, STOP):
        torch.rand(7)
        seen, reward, terminated, _, other = env.step(choice)
        again.append(seen)
        if terminated:
            break
    assert all(np.array_equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert (reward, other["flops"]) == (rewards[-1], info["flops"])


def test_an_episode_leaves_the_random_state_of_its_caller_alone(known):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    played(GrowthEnv(make_practice=small, folder=known), 7, [TRY])
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_no_task_comes_twice():
    env = GrowthEnv(make_practice=small)
    env.reset(seed=1)
    seeds = [env.reset()[1]["seed"] for _ in range(5)]
    env.close()
    other = GrowthEnv(make_practice=small)
    other.reset(seed=1)
    assert len(set(seeds)) == 5
    assert other.reset()[1]["seed"] == seeds[0]
    other.close()


@pytest.mark.parametrize("choices", [[STOP], [WAIT], [TRY + MOST - 1, STOP]])
def test_whoever_does_nothing_saves_nothing_and_pays_nothing(choices):
    """An action that is not there waits."""
    _, rewards, info = played(GrowthEnv(make_practice=small), 7, choices)
    assert set(rewards) == {0.0}
    assert (info["flops"], info["tried"]) == (1.0, 0)


def to_the_end(action, known):
    """The run of ``small(7)`` in which that is tried at the second boundary, trained to its end."""
    practice, config = small(7), GrowthConfig(seed=7)
    run = run_episode(practice, config, Scripted(config, lambda number, *_: action if number == SECOND else None, 1))
    alone = Frontiers(GrowthConfig(), known).of(practice)
    return run, alone.saved(run.loss, run.flops), run.flops / alone.flops[0]


def test_a_run_of_which_nothing_was_adopted_is_told_as_if_it_was_trained_to_the_end(known):
    run, saved, flops = to_the_end(FAILS, known)
    _, rewards, info = played(GrowthEnv(make_practice=small, folder=known), 7, [WAIT, TRY + FAILS, STOP])
    assert not run.decided[0].is_adopted
    assert rewards == [0.0] * (len(rewards) - 1) + [pytest.approx(saved, abs=1e-9)]
    assert info["flops"] == pytest.approx(flops, rel=1e-9)
    assert flops > 1
    assert (info["tried"], info["adopted"]) == (1, 0)


def test_a_run_of_which_something_was_adopted_is_trained_to_the_end(known):
    run, saved, flops = to_the_end(GROWS, known)
    _, rewards, info = played(GrowthEnv(make_practice=small, folder=known), 7, [WAIT, TRY + GROWS, STOP])
    assert run.decided[0].is_adopted
    assert (rewards[-1], info["flops"]) == (saved, flops)
    assert saved > 0
    assert (info["tried"], info["adopted"]) == (1, 1)


def test_a_trial_in_the_run_itself_is_trained_to_the_end():
    """What is lost there may leave a trace."""
    practice, config = small(7), GrowthConfig(seed=7, trial="live")
    plan, frontiers = [TRY + FAILS, STOP], Frontiers(config)
    one = play(practice, config, lambda seen, actions: plan.pop(0), frontiers)
    run = run_episode(practice, config, Scripted(config, lambda number, *_: FAILS if number == 2 else None, 1))
    assert one.flops == run.flops / frontiers.of(practice).flops[0]


def test_a_task_in_which_nothing_can_be_done_ends_with_the_first_step():
    env = GrowthEnv(make_practice=idle)
    seen, info = env.reset(seed=1)
    assert not seen["is_action"].any()
    assert info["action_mask"].tolist() == [1, 1] + [0] * MOST
    _, reward, terminated, truncated, _ = env.step(WAIT)
    assert (reward, terminated, truncated) == (0.0, True, False)


def test_a_run_that_cannot_go_on_is_truncated_and_says_why():
    env = GrowthEnv(make_practice=broken)
    env.reset(seed=1)
    _, reward, terminated, truncated, info = env.step(WAIT)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["fault"] == "There is no such host."


def test_after_the_end_there_is_no_step():
    env = GrowthEnv(make_practice=idle)
    played(env, 1, [])
    with pytest.raises(ConfigError, match="Call reset first"):
        env.step(WAIT)


def test_an_observation_holds_what_the_network_reads():
    practice, config = small(7), GrowthConfig(seed=7)
    never = run_episode(practice, config, Scripted(config, lambda *what: None, 0))
    read, shown = [], []
    for seen in never.seen.values():
        actions = legal_actions(seen, config)
        read.append(tokens(seen, config, actions))
        shown.append(offer(seen, config, actions).arrays)
    for one, other in zip(Padded.of(read), padded(shown), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("count", [20, 90])
def test_of_too_many_places_and_actions_some_are_left_out_evenly(count):
    places = [place(f"p{number:02}", kind="layer" if number % 2 else "block") for number in range(count)]
    seen, config = replace(NOW, places=tuple(places)), GrowthConfig(blueprints=tuple(CATALOGUE))
    actions = legal_actions(seen, config)
    shown = offer(seen, config, actions)
    assert len(actions) > MOST
    assert len(shown.kept) == MOST == int(shown.arrays["is_action"].sum())
    assert shown.kept == sorted(set(shown.kept))
    assert int(shown.arrays["is_place"].sum()) == min(count, PLACES)
    of = [actions[index].place.layer_id for index in shown.kept]
    assert len(set(of)) == len(set(shown.arrays["place_of"].tolist())) == min(count, PLACES)
    assert max(of) > f"p{0.9 * count:02.0f}"
    assert offer(seen, config, actions).kept == shown.kept


def test_frontiers_are_measured_once(tmp_path, monkeypatch):
    known = Frontiers(GrowthConfig(), tmp_path).of(small(7))
    monkeypatch.setattr("esper.learning.playing.run_episode", None)
    assert Frontiers(GrowthConfig(), tmp_path).of(small(7)) == known


def test_frontiers_of_another_config_or_run_are_others(tmp_path):
    for config, practice in (
        (GrowthConfig(), small(7)),
        (GrowthConfig(grow_until=0.3), small(7)),
        (GrowthConfig(), replace(small(7), steps=48)),
    ):
        Frontiers(config, tmp_path).of(practice)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_frontier_that_is_damaged_is_an_error_that_names_its_file(tmp_path):
    Frontiers(GrowthConfig(), tmp_path).of(small(7))
    (path,) = tmp_path.iterdir()
    path.write_text("{}")
    with pytest.raises(DataError, match=f"{path.name}.*Delete it"):
        Frontiers(GrowthConfig(), tmp_path).of(small(7))


def test_environments_run_in_processes():
    make = partial(GrowthEnv, make_practice=small)
    envs = gymnasium.vector.AsyncVectorEnv([make, make], context="spawn")
    try:
        seen, info = envs.reset(seed=[7, 8])
        assert seen["actions"].shape[:2] == (2, MOST)
        assert info["seed"].tolist() == [7, 8]
        _, rewards, terminated, truncated, info = envs.step(np.array([STOP, STOP]))
        assert rewards.tolist() == [0.0, 0.0]
        assert terminated.all()
        assert not truncated.any()
        assert info["flops"].tolist() == [1.0, 1.0]
    finally:
        envs.close()


def test_the_example_of_the_page_runs(capsys):
    page = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
    exec(page.partition("```python")[2].partition("```")[0], {})
    assert "of the loss saved, for" in capsys.readouterr().out


def test_what_is_paused_is_asked_answered_and_ends():
    def work(ask):
        return ask(1) + ask(2)

    one = paused(work)
    assert next(one) == 1
    assert one.send(10) == 2
    with pytest.raises(StopIteration) as end:
        one.send(20)
    assert end.value.value == 30


def test_what_it_raises_is_raised_where_it_is_asked():
    def work(ask):
        ask(1)
        raise TransitionError("It cannot go on.")

    one = paused(work)
    next(one)
    with pytest.raises(TransitionError, match="cannot go on"):
        one.send(0)


def test_what_is_closed_ends_where_it_asks_and_leaves_no_thread():
    ended = []

    def work(ask):
        try:
            ask(1)
        except Exception:
            ended.append("caught")
        finally:
            ended.append("ended")

    before = threading.active_count()
    one = paused(work)
    next(one)
    assert threading.active_count() == before + 1
    one.close()
    assert ended == ["ended"]
    assert threading.active_count() == before
