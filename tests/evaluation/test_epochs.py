"""Epochs of a fixed length go through the data one after the other, and can be taken up again anywhere."""

import pytest
import torch

from esper.contracts.errors import CheckpointError
from esper.evaluation.training import Epochs
from esper.runtime.training.loader import BatchLoader


def _epochs(batches: int) -> Epochs:
    return Epochs(BatchLoader((torch.arange(23),), 5, seed=1), batches)


def _plain(count: int) -> list[torch.Tensor]:
    loader, found = BatchLoader((torch.arange(23),), 5, seed=1), []
    while len(found) < count:
        found += [batch[0] for batch in loader]
    return found[:count]


@pytest.mark.parametrize("batches", [1, 3, 4, 5, 11])
def test_the_batches_are_those_of_the_loader_in_its_order(batches):
    loader = _epochs(batches)
    assert len(loader) == batches
    epochs = [[batch[0] for batch in loader] for _ in range(4)]
    assert [len(epoch) for epoch in epochs] == [batches] * 4
    given = [batch for epoch in epochs for batch in epoch]
    assert all(map(torch.equal, given, _plain(4 * batches)))


@pytest.mark.parametrize("batches", [1, 3, 4, 7])
@pytest.mark.parametrize("stop", [0, 1, 3, 7, 8, 12, 13])  # of 5 batches an epoch of the loader: ends, and within
def test_a_loader_goes_on_where_its_state_was_taken(batches, stop):
    expected = _plain(14 + 2 * batches)
    first = _epochs(batches)
    taken, state = 0, first.state_dict()
    while taken < stop:
        for _ in first:
            taken += 1
            state = first.state_dict()
            if taken == stop:
                break
    second = _epochs(batches)
    second.load_state_dict(state)
    left = [batch[0] for batch in second]
    assert len(left) == (-stop % batches if stop % batches else (0 if stop else batches))
    following = left + [batch[0] for batch in second]
    assert all(map(torch.equal, following, expected[stop:]))


def test_a_state_of_a_longer_epoch_is_refused():
    loader = _epochs(9)
    for index, _ in enumerate(loader):
        if index == 6:
            break
    with pytest.raises(CheckpointError, match="batch 7 of an epoch, but an epoch now has 4"):
        _epochs(4).load_state_dict(loader.state_dict())
