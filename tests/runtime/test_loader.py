"""Batches come in an order of their own, and can be taken up anywhere."""

import pytest
import torch

from esper.contracts.errors import CheckpointError, ConfigError
from esper.runtime.training.loader import BatchLoader


def _loader(seed: int = 0, batch_size: int = 4, n: int = 18) -> BatchLoader:
    return BatchLoader((torch.arange(n), torch.arange(n) * 10), batch_size, seed)


def _epochs(loader: BatchLoader, count: int) -> list[list[int]]:
    return [[int(i) for x, _ in loader for i in x] for _ in range(count)]


def test_an_epoch_gives_whole_batches_of_distinct_samples():
    batches = list(_loader())
    assert len(batches) == len(_loader()) == 4
    assert [len(x) for x, _ in batches] == [4, 4, 4, 4]
    assert len({int(i) for x, _ in batches for i in x}) == 16


def test_all_tensors_are_dealt_alike():
    assert all(torch.equal(x * 10, y) for x, y in _loader())


def test_the_order_depends_on_seed_and_epoch_alone():
    first, again, other = (_epochs(_loader(seed), 3) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[0] != first[1] != first[2]


def test_the_global_random_state_is_neither_read_nor_moved():
    torch.manual_seed(1)
    first, state = _epochs(_loader(), 2), torch.get_rng_state()
    torch.manual_seed(2)
    assert _epochs(_loader(), 2) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_larger_than_the_data_is_the_only_one():
    loader = _loader(batch_size=100)
    assert [len(x) for x, _ in loader] == [18]
    assert len(loader) == 1


@pytest.mark.parametrize("taken", [0, 1, 3, 4])
def test_a_loaded_state_gives_exactly_the_batches_that_were_left(taken):
    loader = _loader()
    list(loader)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    rest = [x.tolist() for x, _ in batches]
    after = [x.tolist() for x, _ in loader]

    resumed = _loader()
    resumed.load_state_dict(state)
    assert [x.tolist() for x, _ in resumed] == rest
    assert [x.tolist() for x, _ in resumed] == after


def test_a_finished_epoch_advances_the_epoch_and_the_state_is_plain_numbers():
    loader = _loader()
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 0, "position": 1}
    list(loader)
    assert loader.state_dict() == {"epoch": 1, "position": 0}
    assert {type(value) for value in loader.state_dict().values()} == {int}


def test_a_state_of_longer_epochs_is_refused():
    with pytest.raises(CheckpointError, match="batch 9 of an epoch, but an epoch now has 4"):
        _loader().load_state_dict({"epoch": 0, "position": 9})


@pytest.mark.parametrize(
    ("tensors", "batch_size", "says"),
    [
        ((torch.zeros(3), torch.zeros(4)), 2, r"lengths are \[3, 4\]"),
        ((torch.zeros(0),), 2, r"lengths are \[0\]"),
        ((), 2, r"lengths are \[\]"),
        ((torch.zeros(3),), 0, "batch_size must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_dealt_is_refused(tensors, batch_size, says):
    with pytest.raises(ConfigError, match=says):
        BatchLoader(tensors, batch_size, seed=0)
