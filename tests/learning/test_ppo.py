import builtins
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esper.contracts.errors import CheckpointError, ConfigError
from esper.learning.arrays import padded
from esper.learning.objective import Batch, advantages, drift, explained_variance, improve, losses, outcomes
from esper.learning.ppo import CURVES, POSITION, WEIGHTS, learn
from esper.learning.ppo_settings import METRICS, Settings
from esper.learning.rollouts import Job, Step, Trajectory, rollouts, weights_of
from esper.tamiyo.learned.network import STOP, WAIT, Shape, TamiyoNetwork
from esper.tamiyo.learned.weights import load
from tests.learning.practising import broken, quick

SETTINGS = Settings(make_practice=quick, tasks=1, episodes=2, batch=4, epochs=2, lr=1e-2)


def begun(seed=0):
    """A network that prefers nothing yet; its judgement says something."""
    torch.manual_seed(seed)
    network = TamiyoNetwork(Shape(16, 2, 1))
    with torch.no_grad():
        network.heads.weight.normal_(0, 0.1)
    return network


@pytest.fixture(scope="module")
def boundaries(tmp_path_factory):
    """What is seen of episodes that wait until nothing can be done any more."""
    (played,) = rollouts([job(1, tmp_path_factory.mktemp("frontiers"), waiting())], workers=1)
    return [step.seen for step in played.steps]


def waiting():
    network = begun()
    with torch.no_grad():
        network.of_run[-1].bias[WAIT] = 20
    return network


def job(episodes, folder, network=None, make=quick):
    network = network or begun()
    return Job(7, 1, episodes, network.shape, weights_of(network), SETTINGS.config, make, folder)


def adam(network):
    return torch.optim.Adam(network.parameters(), 1e-2, eps=1e-5)


@torch.no_grad()
def led_to(boundaries, choice, saved):
    """An episode in which a choice was made at every boundary."""
    network = begun()
    steps = []
    for seen in boundaries:
        judged = network(padded([seen]))
        steps.append(Step(seen, choice, float(judged.choice[0, choice]), float(judged.value[0])))
    return Trajectory(steps, saved)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_without_values_the_advantage_of_every_boundary_is_the_reward():
    assert advantages([0.0] * 3, 0.4, 1.0, 1.0).tolist() == pytest.approx([0.4] * 3)


def test_advantages_are_those_of_the_paper():
    """Equation 16 by hand: deltas 0.1, 0.1 and 0.2, each later one counting 0.5 * 0.9."""
    found = advantages([0.1, 0.2 / 0.9, 0.2], 0.4, 0.9, 0.5)
    deltas = [0.9 * 0.2 / 0.9 - 0.1, 0.9 * 0.2 - 0.2 / 0.9, 0.4 - 0.2]
    expected = [sum(0.45 ** (later - now) * deltas[later] for later in range(now, 3)) for now in range(3)]
    assert found.tolist() == pytest.approx(expected)


def test_what_paid_becomes_likelier_and_what_cost_less_likely(boundaries):
    network, first = begun(), begun()
    played = [led_to(boundaries, 2, 0.3), led_to(boundaries, WAIT, -0.3)]
    batch = Batch.of(played, SETTINGS)
    before = first(batch.seen).choice.exp()
    optimizer = adam(network)
    improve(network, first, optimizer, batch, SETTINGS, torch.Generator().manual_seed(0))
    after = network(batch.seen).choice.exp()
    assert (after[:, 2] > before[:, 2]).all()
    assert (after[:, WAIT] < before[:, WAIT]).all()
    assert (after[~(network(batch.seen).choice > -torch.inf)] == 0).all()


def test_where_all_episodes_are_worth_the_same_nothing_becomes_likelier(boundaries):
    network, first = begun(), begun()
    settings = replace(SETTINGS, entropy=0.0, value=0.0)
    batch = Batch.of([led_to(boundaries, 2, 0.0), led_to(boundaries, WAIT, 0.0)], settings)
    improve(network, first, adam(network), batch, settings, torch.Generator())
    torch.testing.assert_close(network(batch.seen).choice.exp(), first(batch.seen).choice.exp(), atol=1e-4, rtol=0)


def test_a_choice_that_has_moved_beyond_the_clip_is_pushed_no_further(boundaries):
    network = begun()
    batch = Batch.of([led_to(boundaries, 2, 0.3)], SETTINGS)
    judged, advantage = network(batch.seen), torch.ones(len(batch.choice))
    for shift, is_pushed in ((0.0, True), (-0.5, False)):  # it has become likelier by e^0.5
        moved = batch._replace(log_probability=batch.log_probability + shift)
        parts, _ = losses(judged, judged, moved, advantage, 0.2)
        (gradient,) = torch.autograd.grad(parts.policy_loss, judged.choice, retain_graph=True)
        assert bool(gradient.any()) is is_pushed


def test_the_anchor_holds_the_judgement(boundaries):
    apart = {}
    for weight in (0.0, 10.0):
        network, first = begun(), begun()
        settings = replace(SETTINGS, anchor=weight, epochs=20, most_step_kl=100)
        batch = Batch.of([led_to(boundaries, 2, 0.3), led_to(boundaries, WAIT, -0.3)], settings)
        improve(network, first, adam(network), batch, settings, torch.Generator())
        apart[weight] = drift(network(batch.seen), first(batch.seen), batch.seen.is_action).item()
    assert apart[10.0] < 0.1 * apart[0.0]


def test_divergence_from_the_first_policy_holds_it_back(boundaries):
    apart = {}
    for weight in (0.0, 10.0):
        network, first = begun(), begun()
        settings = replace(SETTINGS, kl=weight, epochs=10, most_step_kl=100)
        batch = Batch.of([led_to(boundaries, 2, 0.3), led_to(boundaries, WAIT, -0.3)], settings)
        optimizer = adam(network)
        apart[weight] = improve(network, first, optimizer, batch, settings, torch.Generator())["kl_to_first"]
    assert 0 < apart[10.0] < 0.3 * apart[0.0]


@pytest.mark.parametrize(("most", "epochs"), [(1e-9, 2), (100, 6)])
def test_an_update_ends_when_the_policy_has_moved_far_enough(boundaries, most, epochs):
    """The first step of the first pass has not moved yet."""
    network, settings = begun(), replace(SETTINGS, most_step_kl=most, epochs=6, batch=1000)
    batch = Batch.of([led_to(boundaries, 2, 0.3), led_to(boundaries, WAIT, -0.3)], settings)
    told = improve(network, begun(), adam(network), batch, settings, torch.Generator())
    assert told["epochs"] == epochs


def test_explained_variance():
    returns = torch.tensor([0.1, 0.2, 0.3])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(torch.zeros(3), returns) == pytest.approx(0)
    assert explained_variance(-returns, returns) < 0
    assert explained_variance(returns, torch.ones(3)) == 0


def test_what_is_told_of_episodes(boundaries):
    played = [
        Trajectory(led_to(boundaries[:3], WAIT, 0.0).steps, 0.0),
        Trajectory(led_to(boundaries[:1], STOP, 0.0).steps, 0.2, 1.5, tried=2, adopted=1),
        Trajectory([], fault="It could not go on."),
    ]
    told = outcomes(played)
    assert told == {
        "episodes": 2,
        "faults": 1,
        "boundaries": 4,
        "reward": 0.1,
        "flops": 1.25,
        "waited": 0.75,
        "stopped": 0.25,
        "tried": 1,
        "adopted": 0.5,
    }


def test_nothing_is_learned_from_what_could_not_go_on(boundaries):
    faulty = replace(led_to(boundaries, 2, 0.0), fault="It could not go on.")
    assert Batch.of([faulty], SETTINGS) is None
    assert len(Batch.of([faulty, led_to(boundaries[:2], 2, 0.1)], SETTINGS).choice) == 2


def test_a_run_that_cannot_go_on_is_told_and_ends_nothing(tmp_path):
    heard = []
    learned = learn(
        begun(), replace(SETTINGS, make_practice=broken), [1], tmp_path, updates=1, workers=1, tell=heard.append
    )
    assert (heard[0]["faults"], heard[0]["episodes"]) == (2, 0)
    assert same(learned, begun())


def test_what_is_resumed_ends_as_if_it_had_never_ended(tmp_path):
    whole = learn(begun(), SETTINGS, [7, 8], tmp_path / "whole", updates=4, workers=1)
    learn(begun(), SETTINGS, [7, 8], tmp_path / "parts", updates=2, workers=1)
    parts = learn(begun(), SETTINGS, [7, 8], tmp_path / "parts", updates=4, workers=1)
    assert same(whole, parts)
    assert not same(whole, begun())
    curves = [(tmp_path / name / CURVES).read_text() for name in ("whole", "parts")]
    assert curves[0] == curves[1]
    assert [json.loads(line)["update"] for line in curves[0].splitlines()] == [1, 2, 3, 4]


def test_a_line_beyond_the_checkpoint_is_dropped(tmp_path):
    learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1)
    line = (tmp_path / CURVES).read_text()
    with (tmp_path / CURVES).open("a") as file:
        file.write('{"update": 2, "rew')
    learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1)
    assert (tmp_path / CURVES).read_text() == line


def test_its_weights_are_those_of_a_controller_that_chooses_by_its_policy(tmp_path):
    network = begun()
    learned = learn(network, SETTINGS, [7], tmp_path, updates=1, workers=1)
    loaded, card = load(tmp_path / WEIGHTS)
    assert same(loaded, learned)
    assert loaded.shape.chooses_by == "policy"
    assert card["updates"] == 1
    assert network.shape.chooses_by == "judgement"
    assert same(network, begun())


def test_all_that_is_told_is_explained(tmp_path):
    heard = []
    learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1, tell=heard.append)
    assert set(heard[0]) == set(METRICS)
    page = (Path(__file__).parents[2] / "docs" / "ppo.md").read_text()
    assert [name for name in METRICS if f"| `{name}` |" not in page] == []


def test_other_settings_seeds_or_weights_are_refused(tmp_path):
    learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1)
    with pytest.raises(ConfigError, match=r"other lr\. Go on"):
        learn(begun(), replace(SETTINGS, lr=1e-4), [7], tmp_path, updates=2, workers=1)
    with pytest.raises(ConfigError, match="other seeds"):
        learn(begun(), SETTINGS, [8], tmp_path, updates=2, workers=1)
    with pytest.raises(ConfigError, match="other first weights"):
        learn(begun(1), SETTINGS, [7], tmp_path, updates=2, workers=1)


def test_a_damaged_checkpoint_is_one_error(tmp_path):
    learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1)
    (tmp_path / POSITION).write_bytes(b"nothing that is packed")
    with pytest.raises(CheckpointError, match="begin anew"):
        learn(begun(), SETTINGS, [7], tmp_path, updates=2, workers=1)


def test_when_the_time_is_over_no_update_begins(tmp_path):
    learned = learn(begun(), SETTINGS, [7], tmp_path, updates=1, workers=1, seconds=0.0)
    assert same(learned, begun())
    assert not (tmp_path / CURVES).exists()


def test_processes_play_as_this_one_does(tmp_path):
    jobs = [job(2, tmp_path / "frontiers"), replace(job(1, tmp_path / "frontiers"), stream=2)]
    here, there = (list(rollouts(jobs, workers)) for workers in (1, 2))
    assert [len(one.steps) for one in here] == [len(one.steps) for one in there]
    assert [(one.saved, one.flops, one.tried) for one in here] == [(one.saved, one.flops, one.tried) for one in there]
    assert [step[1:] for one in here for step in one.steps] == [step[1:] for one in there for step in one.steps]


def test_it_writes_for_tensorboard_where_asked(tmp_path):
    settings = replace(SETTINGS, tensorboard=True)
    learn(begun(), settings, [7], tmp_path, updates=1, workers=1)
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("torch.utils.tensorboard"):
            raise ModuleNotFoundError(name="tensorboard")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"esper-morphogenetic\[tensorboard\]"):
        learn(begun(), replace(SETTINGS, tensorboard=True), [7], tmp_path, updates=1, workers=1)


@pytest.mark.parametrize(
    ("name", "value"), [("tasks", 0), ("lr", 0.0), ("clip", -0.1), ("kl", -1.0), ("trace", 1.5), ("discount", -0.1)]
)
def test_a_setting_that_cannot_work_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        replace(SETTINGS, **{name: value})


@pytest.mark.parametrize(("updates", "workers", "seeds"), [(0, 1, [7]), (1, 0, [7]), (1, 1, [])])
def test_there_is_something_to_do(tmp_path, updates, workers, seeds):
    with pytest.raises(ConfigError, match="At least one"):
        learn(begun(), SETTINGS, seeds, tmp_path, updates=updates, workers=workers)
