"""Two ranks among which ``fully_shard`` deals out the parameters do to the bit the same, and what one does with all
samples."""

import numpy as np
import pytest
from torch import distributed

from tests.ranks.launch import heard

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without it")

AS_ONE = ("grown", "live")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    names = ("sharded bare", "sharded dormant", "sharded half", *(f"sharded {name}" for name in AS_ONE))
    return heard(tmp_path_factory.mktemp("two"), 2, *names)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return heard(tmp_path_factory.mktemp("one"), 1, *AS_ONE)[0]


def test_seeds_that_sleep_change_nothing(two):
    assert two[0]["sharded bare"] == two[0]["sharded dormant"]


@pytest.mark.parametrize("name", [*AS_ONE, "half"])
def test_ranks_decide_and_hold_the_same(two, name):
    first, second = (rank[f"sharded {name}"] for rank in two)
    assert first == second
    assert "FINE_TUNING" in [target for *_, target, arm in first["moves"] if arm is None]


@pytest.mark.parametrize("name", AS_ONE)
def test_two_ranks_do_what_one_does_with_all_samples(two, one, name):
    told, alone = two[0][f"sharded {name}"], one[name]
    assert told["moves"] == alone["moves"]
    for weights, others in zip(told["weights"], alone["weights"], strict=True):
        assert np.allclose(weights, others, rtol=0, atol=1e-12)
