"""Parts of tensors that ranks hold together, cut and put together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.checkpoint.tree import clone, flatten, unflatten
from esper.contracts.errors import CheckpointError
from esper.shards import Shard, cut, dealt


@given(st.integers(0, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1))
def test_any_number_goes_on_where_any_number_has_written(length, before, after, dim):
    tensor = torch.arange(length * 2).view((length, 2) if dim == 0 else (2, length))
    trees = [{"a": [cut(tensor, dim, rank, before)], "b": rank} for rank in range(before)]
    anew = [dealt(trees, rank, after) for rank in range(after)]
    for rank, one in enumerate(anew):
        (mine,), (wanted,) = one["a"], [cut(tensor, dim, rank, after)]
        assert torch.equal(mine.local, wanted.local)
        assert (mine.dim, mine.shape, one["b"]) == (dim, tensor.shape, 0)
    assert torch.equal(dealt(anew, 0, 1)["a"][0].local, tensor)


def test_parts_are_cut_as_torch_cuts_them():
    tensor = torch.arange(10)
    assert [cut(tensor, 0, rank, 4).local.tolist() for rank in range(4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_a_part_is_stored_and_copied():
    shard = cut(torch.arange(6.0).view(3, 2), 0, 1, 2)
    for found in (unflatten(*flatten({"a": shard}))["a"], clone(shard)):
        assert isinstance(found, Shard)
        assert torch.equal(found.local, shard.local)
        assert found[1:] == shard[1:]
        assert found.local.data_ptr() != shard.local.data_ptr() or found is not shard


def test_what_is_no_part_is_refused():
    with pytest.raises(CheckpointError, match="a shard is a tensor and a dimension"):
        unflatten({"shard": [1, 0, {"size": [2]}]}, {})
