"""scikit-learn's digits as a task."""

import sys

import pytest
import torch

from esper.contracts.errors import ConfigError, DataError
from esper.tasks.catalogue import load_task
from esper.tasks.digits import digits


def test_the_parts_are_disjoint_and_together_all_images():
    task = digits(0)
    parts = (task.train, task.held_out, task.test)
    assert [len(part.y) for part in parts] == [800, 600, 397]
    assert all(part.x.dtype == torch.float32 and part.y.dtype == torch.int64 for part in parts)
    images = torch.cat([part.x for part in parts])
    assert len(images.unique(dim=0)) == len(images) == 1797
    assert 0 == images.min() < images.max() == 1


def test_the_seed_alone_deals_the_images():
    state = torch.get_rng_state()
    assert torch.equal(digits(3).train.x, digits(3).train.x)
    assert not torch.equal(digits(3).train.x, digits(4).train.x)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_host_is_narrow_and_has_an_output_per_class():
    task = digits(0)
    assert [tuple(p.shape) for p in task.make_host().parameters()] == [(8, 64), (8,), (8, 8), (8,), (10, 8), (10,)]
    assert task.num_classes == len(task.labels) == 10


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"esper-morphogenetic\[run\]"):
        digits(0)


def test_an_unknown_name_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match="Did you mean 'digits'"):
        load_task("digit", 0)


def test_a_path_is_read_as_an_archive(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        load_task(str(tmp_path / "none.npz"), 0)
