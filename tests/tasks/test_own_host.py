"""A host of one's own, and one clear message for every way in which it can be wrong."""

import textwrap

import numpy as np
import pytest
import torch

from esper.contracts.errors import ConfigError
from esper.evaluation.scoring import mean_loss
from esper.tasks.catalogue import load_task

MODULE = """
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 10))

def scalable(inputs, classes, width_factor=1.0):
    width = max(1, round(6 * width_factor))
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))

def keywords(*args, **settings):
    assert not args and not settings
    return plain()

class Net(nn.Module):
    def __init__(self, inputs: int, *, classes: int, depth: int = 1):
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
    def forward(self, x):
        return self.layer(x)

def shaped(shape, classes):
    assert shape == (3, 4)
    return nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(4, classes))

def tokens(classes):
    return nn.Sequential(nn.Embedding(classes, 7), nn.Linear(7, classes))

def flat(inputs):
    return nn.Sequential(nn.Linear(inputs, 1), nn.Flatten(0))

def two(inputs):
    return nn.Linear(inputs, 2)

def draws():
    torch.rand(1)
    return plain()

def no_module():
    return "a network"

def nothing():
    pass

def empty():
    return nn.Flatten()

def few():
    return nn.Linear(64, 3)

def narrow_input():
    return nn.Linear(63, 10)

def asks(inputs, depth):
    return plain()

def breaks():
    raise OSError("no such\\nweights")

def leaves():
    raise SystemExit(3)

class Pair(Net):
    def forward(self, x):
        return self.layer(x), x

class Whole(Net):
    def forward(self, x):
        return self.layer(x).argmax(1)[:, None].expand(-1, 10)

_one = plain()

def again():
    return _one

number = 3
module = plain()
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory):
    directory = tmp_path_factory.mktemp("own")
    (directory / "own_nets.py").write_text(MODULE)
    (directory / "own_broken.py").write_text("import nothing_of_this_name\n")
    (directory / "own_wrong.py").write_text("1 / 0\n")
    (directory / "own_script.py").write_text("raise SystemExit\n")
    (directory / "own_package").mkdir()
    (directory / "own_package" / "nets.py").write_text("from own_nets import plain\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(directory)
        yield


@pytest.mark.parametrize(
    ("name", "is_scalable"),
    [("plain", False), ("scalable", True), ("keywords", False), ("Net", False)],
)
def test_a_factory_gets_what_it_takes(name, is_scalable):
    task = load_task("digits", 0, f"own_nets:{name}")
    assert task.make_host()(task.train.x[:4]).shape == (4, 10)
    assert task.is_scalable is is_scalable


def test_a_factory_may_lie_in_a_package():
    assert load_task("digits", 0, "own_package.nets:plain").make_host()[0].out_features == 5


def test_a_width_factor_arrives():
    assert load_task("digits", 0, "own_nets:scalable").make_host(width_factor=2.0)[0].out_features == 12


def test_samples_come_in_the_datas_own_shape(tmp_path):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(120, 3, 4))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(120) % 3)
    task = load_task(str(tmp_path / "a.npz"), 0, "own_nets:shaped")
    assert task.train.x.shape[1:] == task.mean.shape == task.std.shape == (3, 4)
    raw = torch.cat([part.x for part in (task.train, task.held_out, task.test)]) * task.std + task.mean
    expected = torch.from_numpy(x).float()
    torch.testing.assert_close(raw[raw[:, 0, 0].argsort()], expected[expected[:, 0, 0].argsort()])


def test_a_text_may_have_a_host_of_its_own(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, " * 400)
    task = load_task(f"text:{tmp_path}/a.txt", 0, "own_nets:tokens")
    assert task.make_host()(task.train.x[:2]).shape == (2, 32, task.num_classes)


@pytest.fixture
def quantities(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 5))
    np.savez(tmp_path / "q.npz", x=x, y=x[:, 0] - x[:, 1])
    return str(tmp_path / "q.npz")


@pytest.mark.parametrize(("name", "shape"), [("Net", (4, 1)), ("flat", (4,))])
def test_a_quantity_has_one_output(quantities, name, shape):
    task = load_task(quantities, 0, f"own_nets:{name}")
    assert task.make_host()(task.train.x[:4]).shape == shape
    assert mean_loss(task.make_host(), task.train).shape == ()


def test_two_outputs_for_one_quantity_are_refused(quantities):
    with pytest.raises(ConfigError, match=r"returned \[4, 2\], .*; the target wants outputs of shape \[4, 1\]"):
        load_task(quantities, 0, "own_nets:two")


def test_several_labels_have_an_output_each(tmp_path):
    y = np.random.default_rng(0).integers(2, size=(200, 3))
    np.savez(tmp_path / "l.npz", x=np.random.default_rng(1).normal(size=(200, 5)), y=y)
    task = load_task(str(tmp_path / "l.npz"), 0, "own_nets:scalable")
    assert task.make_host()(task.train.x[:4]).shape == (4, 3)


def test_checking_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    load_task("digits", 0, "own_nets:draws")
    assert torch.equal(torch.get_rng_state(), state)


BAD_HOSTS = {
    "own_nets:": "not of the form module:factory",
    ":plain": "not of the form module:factory",
    "own nets:plain": "not of the form module:factory",
    "no_such_module:plain": "there is no module 'no_such_module', neither in the current directory",
    "own_nets.deeper:plain": "there is no module|is not a package",
    "own_broken:plain": "importing own_broken failed: ModuleNotFoundError: No module named 'nothing_of_this_name'",
    "own_wrong:plain": "importing own_wrong failed: ZeroDivisionError: division by zero",
    "own_script:plain": "importing own_script failed: SystemExit",
    "own_nets:plane": "own_nets has no 'plane'. Did you mean 'plain'",
    "own_nets:number": "is a int, not a factory",
    "own_nets:module": "is a Sequential, not a factory",
    "own_nets:no_module": "returned a str. It must return a torch.nn.Module",
    "own_nets:nothing": "returned a NoneType",
    "own_nets:empty": "without parameters",
    "own_nets:few": "for samples of shape [4, 64] the host returned [4, 3], torch.float32; the labels want logits of "
    "shape [4, 10]",
    "own_nets:narrow_input": "cannot take samples of shape [4, 64], torch.float32: RuntimeError: mat1 and mat2",
    "own_nets:asks": "asks for depth. It may take any of inputs, classes, shape, width_factor",
    "own_nets:breaks": "the factory raised OSError: no such weights",
    "own_nets:leaves": "the factory raised SystemExit: 3",
    "own_nets:Pair": "returned a tuple; the labels want logits of shape [4, 10]",
    "own_nets:Whole": "returned [4, 10], torch.int64; the labels want logits",
    "own_nets:again": "the same module twice",
}


@pytest.mark.parametrize("name", BAD_HOSTS)
def test_a_factory_that_cannot_be_used_is_refused_with_one_clear_message(name):
    with pytest.raises(ConfigError) as caught:
        load_task("digits", 0, name)
    message = str(caught.value)
    assert any(says in message for says in BAD_HOSTS[name].split("|")), message
    assert "\n" not in message
    assert textwrap.shorten(name, 60) in message


def test_a_text_host_must_answer_at_every_position(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be, " * 400)
    with pytest.raises(ConfigError, match="cannot take samples of shape"):
        load_task(f"text:{tmp_path}/a.txt", 0, "own_nets:plain")
