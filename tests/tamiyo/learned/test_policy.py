"""The learned controller in use: it acts where that is worth it, says why, and leaves the rest to the heuristic."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned import policy as policies
from esper.tamiyo.learned import weights
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import STOP, WAIT
from esper.tamiyo.learned.policy import MOST_SPREAD, STRANGE, LearnedPolicy, reasons
from esper.tamiyo.learned.tokens import tokens
from esper.tamiyo.policies import make_policy
from tests.tamiyo.learned.saying import HEADS, saved
from tests.tamiyo.seen import FALLING, NOW

CONFIG = GrowthConfig()
ACTIONS = legal_actions(NOW, CONFIG)
READ = tokens(NOW, CONFIG, ACTIONS)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights.safetensors"


def test_it_acts_where_it_expects_something_and_says_why(path):
    policy = LearnedPolicy(CONFIG, saved(path, READ, adopt=5.0, adopted=0.1))
    (command,) = policy.decide(NOW)
    assert command.target is State.GERMINATED
    assert command.reason.startswith("learned: +9.9% of the final loss expected, give or take")
    assert "adopted with 99%; most by " in command.reason
    assert policy.remarks() == []


@pytest.mark.parametrize("heads", [{"adopt": 5.0, "adopted": -0.1}, {"adopt": -5.0, "adopted": 0.1, "lost": -0.05}])
def test_it_waits_where_it_expects_nothing(path, heads):
    policy = LearnedPolicy(CONFIG, saved(path, READ, **heads))
    assert policy.decide(NOW) == policy.decide(NOW) == []
    (remark,) = policy.remarks()
    assert f"the learned controller waits. Of {len(ACTIONS)} grafts that could be tried" in remark


def test_it_waits_where_waiting_is_worth_more(path):
    assert LearnedPolicy(CONFIG, saved(path, READ, adopt=5.0, adopted=0.1, value=0.2)).decide(NOW) == []


def test_what_it_is_unsure_by_is_taken_off(path):
    """A deviation of 0.11, of which half is taken off."""
    for expected, count in ((0.1, 1), (0.04, 0)):
        saved(path, READ, adopt=5.0, adopted=expected, spread=0.7)
        assert len(LearnedPolicy(CONFIG, path).decide(NOW)) == count


def test_it_does_nothing_where_nothing_may_be_done(path):
    policy = LearnedPolicy(CONFIG, saved(path, READ, adopt=5.0, adopted=0.1))
    assert policy.decide(replace(NOW, rounds_done=2)) == []


def test_it_leaves_to_the_heuristic_what_it_is_unsure_of_and_says_so_once(path):
    policy = LearnedPolicy(CONFIG, saved(path, READ, adopt=5.0, adopted=0.1, spread=MOST_SPREAD + 4))
    assert policy.decide(NOW) == HeuristicPolicy(CONFIG).decide(NOW)
    (remark,) = policy.remarks()
    assert "leaves decisions to the heuristic: it is unsure by" in remark
    policy.decide(NOW)
    assert policy.remarks() == []


def test_it_leaves_to_the_heuristic_what_lies_outside_of_what_it_has_learned_from(path):
    """The weights have seen one boundary."""
    policy = LearnedPolicy(CONFIG, saved(path, READ, adopt=5.0, adopted=0.1))
    strange = replace(NOW, select_losses=FALLING, train_losses=tuple(0.01 * loss for loss in FALLING), step=120)
    assert policy.decide(strange) == HeuristicPolicy(CONFIG).decide(strange) != []
    (remark,) = policy.remarks()
    assert "a feature lies" in remark
    deviations = float(remark.split("a feature lies ")[1].split()[0])
    assert deviations > STRANGE


@pytest.mark.parametrize("spoil", ["missing", "corrupt"])
def test_without_weights_that_can_be_read_the_heuristic_decides_and_that_is_told(path, spoil):
    if spoil == "corrupt":
        path.write_bytes(b"nonsense")
    policy = make_policy(f"learned:{path}", CONFIG)
    assert policy.decide(NOW) == HeuristicPolicy(CONFIG).decide(NOW)
    (remark,) = policy.remarks()
    assert remark.endswith("The heuristic decides in its place.")


def test_a_policy_takes_what_it_prefers_and_stops_for_good(path):
    saved(path, READ, chooses_by="policy")
    network, card = weights.load(path)
    chosen = {}
    for preferred in (WAIT, STOP, None):
        for index in (WAIT, STOP):
            network.of_run[-1].bias.data[index] = 5.0 if index == preferred else -5.0
        weights.save(network, path, card)
        policies._read.cache_clear()
        policy = LearnedPolicy(CONFIG, path)
        chosen[preferred] = len(policy.decide(NOW)), policy.state_dict()["has_stopped"]
        assert len(policy.remarks()) == (preferred == WAIT)
    assert chosen == {WAIT: (0, False), STOP: (0, True), None: (1, False)}


def test_what_it_remembers_goes_on(path):
    saved(path, READ, adopt=5.0, adopted=0.1)
    one, other = LearnedPolicy(CONFIG, path), LearnedPolicy(CONFIG, path)
    one.load_state_dict({"has_stopped": True, "told": ["strange"]})
    other.load_state_dict(one.state_dict())
    assert other.decide(NOW) == []
    assert other.state_dict() == {"has_stopped": True, "told": ["strange"]}


def test_what_was_told_is_not_told_again_by_one_that_goes_on(path):
    """One elsewhere is built anew for every question. Negative control: without a memory it is told again."""
    first = LearnedPolicy(CONFIG, path)
    assert len(first.remarks()) == 1
    other, fresh = LearnedPolicy(CONFIG, path), LearnedPolicy(CONFIG, path)
    other.load_state_dict(first.state_dict())
    assert other.remarks() == []
    fresh.load_state_dict({"has_stopped": False, "told": []})
    assert len(fresh.remarks()) == 1
    assert fresh.state_dict()["told"] == ["weights"]


def test_weights_that_were_written_anew_are_read_anew(path, tmp_path):
    saved(path, READ, adopt=5.0, adopted=0.1)
    assert LearnedPolicy(CONFIG, path).decide(NOW)
    other = saved(tmp_path / "other.safetensors", READ, adopt=5.0, adopted=-0.1)
    assert LearnedPolicy(CONFIG, path).decide(NOW)  # read, and kept
    path.write_bytes(other.read_bytes())
    os.utime(path, (1, 1))
    assert LearnedPolicy(CONFIG, path).decide(NOW) == []


def test_an_explanation_finds_what_a_judgement_rests_on(path):
    """The network reads one feature of the run and nothing else."""
    network, _ = weights.load(saved(path, READ))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.encoder.norm.weight.fill_(1.0)
        feature = 3
        network.run.mean[feature] -= 1.0
        network.run.linear.weight[0, feature] = 1.0
        network.meet[0].weight[0, 32] = network.meet[2].weight[0, 0] = 1.0
        network.heads.weight[HEADS["lost"], 0] = 0.1
        network.heads.bias[HEADS["adopt"]] = -5.0
    first, second, *_ = reasons(network, READ, 0)
    assert first.name == f"run.{policies.names().run[feature]}"
    assert abs(first.moved) > 0.01
    assert second.moved == pytest.approx(0.0, abs=1e-7)
