"""Two ranks through ``DistributedDataParallel`` do to the bit the same, and what one does with all samples."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

import esper
from tests import warm
from tests.ranks.conftest import AS_ONE
from tests.ranks.launch import ROOT, heard, place
from tests.runtime import toy
from tests.runtime.toy import Recipe, growing

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")

GROWN = (*AS_ONE, "bucket view", "trained alone", "batch norm")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("two"), 2, "bare", "dormant", *GROWN, "apart", "asked")


def test_seeds_that_sleep_change_nothing(two):
    assert two[0]["bare"] == two[0]["dormant"]


@pytest.mark.parametrize("name", GROWN)
def test_ranks_decide_and_hold_the_same(two, name):
    first, second = (rank[name] for rank in two)
    assert first["moves"] == second["moves"]
    assert first["weights"] == second["weights"]
    assert (first["losses"], first["flops"]) == (second["losses"], second["flops"])
    assert "FINE_TUNING" in [target for *_, target, arm in first["moves"] if arm is None]


@pytest.mark.parametrize("name", AS_ONE)
def test_two_ranks_do_what_one_does_with_all_samples(two, one, name):
    told, alone = two[0][name], one[name]
    assert told["moves"] == alone["moves"]
    for weights, others in zip(told["weights"], alone["weights"], strict=True):
        assert np.allclose(weights, others, rtol=0, atol=1e-12)


def test_ranks_that_have_come_to_different_points_say_so(two):
    for rank in two:
        assert (
            "Rank 1 has come to 'what was counted' where rank 0 has come to 'the number of a checkpoint'"
            in rank["apart"]
        )


def test_what_one_rank_is_asked_for_all_are(two):
    assert [rank["asked"] for rank in two] == [[True, False], [True, False]]


def test_grafts_come_late_and_more_than_one_is_adopted(two):
    moves = [one for one in two[0]["grown"]["moves"] if one[-1] is None]
    born = [step for step, *_, target, _ in moves if target == "GERMINATED"]
    assert born[-1] > 0.5 * 200
    assert len([one for one in moves if one[-2] == "FINE_TUNING"]) >= 2


def test_torchrun_runs_the_example():
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "examples/several_gpus.py", "6"]
    done = warm.run(line, folder=ROOT, environment=place())
    assert done.returncode == 0, done.stderr
    assert "2 ranks: " in done.stdout


@pytest.mark.usefixtures("alone")
class TestAModelInDistributedDataParallel:
    @staticmethod
    def session(model: nn.Module, called: nn.Module, **told: Any) -> esper.Session:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
        return esper.Session(called, optimizer, loss=toy.loss, evaluate=toy.evaluate, planned_steps=120, **told)

    def test_is_trained_as_the_model_itself(self):
        model = esper.wrap(toy.host(), growing())
        session = self.session(model, nn.parallel.DistributedDataParallel(model))
        plain = Recipe(scheduler=None).build()
        for batch in toy.batches(0):
            assert torch.equal(torch.as_tensor(session.step(batch)), torch.as_tensor(plain.session.step(batch)))

    def test_what_ranks_are_told_must_make_sense(self):
        model = esper.wrap(toy.host(), growing())
        for told, words in (
            ({"held_out": "some"}, "held_out must be 'same' or 'shards', not 'some'"),
            ({"held_out": "shards"}, "held_out='shards' is for several ranks"),
            ({"rank_timeout": 0}, "rank_timeout must be seconds above 0, not 0"),
        ):
            with pytest.raises(esper.ConfigError, match=words):
                self.session(model, model, **told)

    def test_must_be_wrapped_before(self):
        parallel = nn.parallel.DistributedDataParallel(toy.host())
        esper.wrap(parallel.module, growing())
        with pytest.raises(esper.ConfigError, match=r"Wrap first: DistributedDataParallel\(esper.wrap"):
            self.session(parallel.module, parallel)
