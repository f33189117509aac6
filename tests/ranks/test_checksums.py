"""By which ranks compare what they hold: any bit counts, and where it stands."""

import pytest
import torch

from esper.runtime.training import ranks
from esper.runtime.training.ranks import checksums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int32, torch.uint8, torch.bool])
def test_any_bit_and_any_place_changes_it(dtype):
    tensor = (torch.arange(10) % 3).to(dtype)
    before = checksums([("one", tensor)])
    assert checksums([("one", tensor.clone())]) == before
    flipped = tensor.clone()
    flipped.view(torch.uint8)[-1] ^= 1
    swapped = tensor.clone()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert checksums([("one", flipped)]) != before
    assert checksums([("one", swapped)]) != before


def test_it_is_the_same_in_parts(monkeypatch):
    tensor = torch.randn(3, 7).t()
    whole = checksums([("one", tensor)])
    monkeypatch.setattr(ranks, "_PART", 4)
    assert checksums([("one", tensor)]) == whole


def test_what_is_empty_is_left_out():
    assert checksums([("none", torch.zeros(0))]) == {}
