"""Remembered batches come back from a checkpoint as they were, or are refused before it matters."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import esper
from esper.checkpoint.store import read, write
from tests.runtime import toy
from tests.runtime.toy import Recipe
from tests.tree_digest import tree_digest


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def test_batches_come_back_equal(tmp_path):
    batches = [{"x": torch.rand(2, 3), "names": ["a", "b"], "n": 2}, (torch.arange(3), None, 1.5)]
    write(tmp_path, batches)
    assert tree_digest(read(tmp_path)) == tree_digest(batches)


@pytest.mark.parametrize(
    "make", [lambda x, y: Pair(x, y), lambda x, y: OrderedDict(x=x, y=y), lambda x, y: (x, y, object())]
)
def test_a_batch_that_would_come_back_as_something_else_is_refused_at_the_first_step(make, tmp_path):
    def loss(model, batch):
        return toy.loss(model, tuple(batch.values()) if isinstance(batch, dict) else batch[:2])

    batch = make(*next(toy.batches(0)))
    Recipe().build(loss=loss).session.step(batch)
    with pytest.raises(esper.ConfigError, match="that no checkpoint can hold"):
        Recipe().build(loss=loss, directory=tmp_path).session.step(batch)
