"""A network finds a rule in what became of actions, says nothing of tasks that it has learned by heart, and knows what
waiting is worth."""

from dataclasses import replace

import pytest
import torch
from msgspec import structs

from esper.contracts.errors import DataError
from esper.learning.examples import examples
from esper.learning.records import headroom
from esper.learning.supervised import (
    Settings,
    Worth,
    caution_of,
    crossed,
    imitate,
    judged,
    learn,
    picked,
    predictability,
    worth_of,
)
from esper.learning.training import train
from esper.tamiyo.learned import weights
from esper.tamiyo.learned.network import WAIT, Judged, Shape
from esper.tamiyo.learned.tokens import names
from tests.learning.planted import ACTIONS, COSTS, GOOD, RECORDS, SAVES, record

SMALL = Settings(shape=Shape(width=16, heads=2, layers=1), steps=150, batch=64, lr=3e-3)
DATA = examples(RECORDS)


def test_examples_are_the_records():
    assert len(DATA.task) == 4 * len(RECORDS)
    assert len(DATA.saved) == 8 * len(RECORDS)
    assert DATA.order.tolist() == [0, 1, 2, 3] * len(RECORDS)
    assert DATA.heuristic.tolist() == [-1, -1, 0, -1] * len(RECORDS)
    assert float(DATA.saved[DATA.is_adopted].mean()) == pytest.approx(SAVES, abs=0.005)
    assert float(DATA.saved[~DATA.is_adopted].mean()) == pytest.approx(COSTS, abs=0.005)


def test_a_share_of_the_tasks_has_its_own_tries():
    half = torch.arange(len(RECORDS)) % 2 == 0
    some = DATA.of(half)
    alone = examples([one for one in RECORDS if one.seed % 2 == 0])
    assert torch.equal(some.seen.run[some.boundary], alone.seen.run[alone.boundary])
    assert torch.equal(some.saved, alone.saved)
    assert torch.equal(some.action, alone.action)


def test_a_rule_is_found_also_for_tasks_that_were_not_learned_from():
    said = crossed(DATA, SMALL)
    found = predictability(said, DATA, caution_of(said, DATA))
    assert found["r2"] > 0.8
    assert found["picked"] == pytest.approx(SAVES, abs=0.005)
    assert found["picked_share"] == 1.0
    assert found["auc"] > 0.95
    assert found["chosen"] > 0.05 > found["all"]


def test_what_is_said_of_a_task_does_not_depend_on_what_became_of_it():
    """Negative control: what a network says that has learned from it does."""
    few = Settings(shape=SMALL.shape, steps=30, batch=32)
    spoilt = examples([record(one.seed, is_good=one.seed != 3) for one in RECORDS])
    rows = DATA.task == 3
    assert torch.equal(crossed(DATA, few).gain[rows], crossed(spoilt, few).gain[rows])
    one, other = (judged(learn(data, few), data.seen).gain[rows] for data in (DATA, spoilt))
    assert not torch.equal(one, other)


def said_of(gains: list[float]) -> Judged:
    """Boundaries at each of which every action is worth the same."""
    shape = len(gains), len(ACTIONS)
    gain = torch.tensor(gains)[:, None].expand(shape)
    zeros = torch.zeros(shape)
    return Judged(
        torch.full(shape, 100.0), gain, gain, zeros, torch.zeros(shape[0], 2 + shape[1]), torch.zeros(shape[0])
    )


@pytest.mark.parametrize(
    ("gains", "waiting", "is_time"),
    [
        ([0.1, 0.2, 0.05, -0.1], [0.2, 0.05, 0.0, 0.0], [False, True, True, False]),
        ([-0.1, -0.2, -0.1, -0.1], [0.0] * 4, [False] * 4),
        ([0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.0], [True] * 4),
    ],
)
def test_waiting_is_worth_the_most_that_comes(gains, waiting, is_time):
    worth = worth_of(said_of(gains), examples([record(0)]), 0.5)
    assert worth.waiting.tolist() == pytest.approx(waiting)
    assert worth.is_time.tolist() == is_time


def test_waiting_ends_with_the_run():
    """What comes in another run is worth nothing in this one."""
    data, said = examples([record(0), record(1)]), said_of([-0.1, -0.1, -0.1, 0.3])
    both = Judged(*(torch.cat([part, part]) for part in said))
    assert worth_of(both, data, 0.5).waiting.tolist() == pytest.approx([0.3, 0.3, 0.3, 0.0] * 2)


def test_of_each_task_that_is_picked_of_which_most_is_expected():
    """At one boundary an action saves, at another it costs; where the wrong one is expected to save, that is taken."""
    drawn = record(0, boundaries=2, tries=2)
    tries = [structs.replace(drawn.tried[0], seen=0, saved=0.2), structs.replace(drawn.tried[1], seen=1, saved=-0.1)]
    data = examples([structs.replace(drawn, seed=seed, tried=tries) for seed in range(20)])
    right, wrong = [0.3, 0.1], [-0.1, 0.1]
    said = said_of(10 * (right + wrong))._replace(spread=torch.ones(40, len(ACTIONS)))
    assert picked(said, data, 0.0)[::2] == pytest.approx((0.05, 1.0))  # 0.2 and -0.1
    assert picked(said, data, 0.2)[::2] == pytest.approx((0.1, 0.5))  # 0.2 and nothing
    assert picked(said, data, 0.5) == (0.0, 0.0, 0.0)
    assert caution_of(said, data) == 0.2


def test_the_policy_learns_to_act_where_it_is_time_and_the_value_what_waiting_is_worth():
    best = next(index for index, one in enumerate(ACTIONS) if one.option.blueprint.id == GOOD)
    waiting = torch.where(DATA.order < 2, 0.2, 0.0)
    worth = Worth(torch.full_like(DATA.order, best), torch.full_like(waiting, 0.1), waiting)
    said = judged(learn(DATA, SMALL, worth), DATA.seen)
    wanted = torch.where(DATA.order < 2, WAIT, best + 2)
    assert float((said.choice.argmax(1) == wanted).float().mean()) > 0.95
    assert float((said.value - waiting).abs().mean()) < 0.05


def test_imitation_does_what_the_heuristic_did():
    choice = judged(imitate(DATA, SMALL), DATA.seen).choice.argmax(1)
    wanted = torch.where(DATA.heuristic < 0, WAIT, DATA.heuristic + 2)
    assert float((choice == wanted).float().mean()) > 0.95


def test_training_writes_weights_that_say_what_they_were_made_from(tmp_path):
    told = []
    path = tmp_path / "weights.safetensors"
    card = train(RECORDS, path, SMALL, lambda *what: told.append(what))
    network, written = weights.load(path)
    assert written == card
    assert card["tasks"] == {"planted": 20}
    assert card["foreseen"]["r2"] > 0.8
    assert network.shape == replace(SMALL.shape, caution=caution_of(crossed(DATA, SMALL), DATA))
    assert {phase for phase, _, _ in told} == {"judgement", *(f"fold {number}" for number in range(1, 6))}


def test_imitation_is_written_as_a_policy_that_chooses(tmp_path):
    path = tmp_path / "weights.safetensors"
    few = Settings(shape=SMALL.shape, steps=10, batch=32)
    assert train(RECORDS, path, few, learns="imitation")["learns"] == "imitation"
    assert weights.load(path)[0].shape.chooses_by == "policy"


def test_one_that_is_blind_to_curves_does_not_see_them():
    """Negative control: one that is not does."""
    few = Settings(shape=SMALL.shape, steps=10, batch=32)
    curve = names().run.index("fall_of_select_2")
    other = DATA.seen._replace(run=DATA.seen.run.clone())
    other.run[:, curve] += 1.0
    for is_blind in (True, False):
        network = learn(DATA, replace(few, without_curves=is_blind))
        is_same = torch.equal(judged(network, other).gain, judged(network, DATA.seen).gain)
        assert is_same is is_blind


def test_the_same_seed_gives_the_same_weights(tmp_path):
    few = Settings(shape=SMALL.shape, steps=10, batch=32)
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path in paths:
        train(RECORDS, path, few)
    one, other = (weights.load(path)[0].state_dict() for path in paths)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_too_few_tasks_are_refused():
    with pytest.raises(DataError, match="10 tasks"):
        crossed(examples(RECORDS[:4]), SMALL)


def test_the_headroom_is_told():
    found = headroom(RECORDS)
    assert found["tasks"] == 20
    assert found["heuristic"] == pytest.approx(-0.01)
    assert found["heuristic_flops"] == pytest.approx(0.2)
    assert found["best"] == pytest.approx(SAVES, abs=0.01)
    with pytest.raises(DataError, match="anything be tried"):
        headroom([])
