"""Trained weights are read without executing anything, and put into a host strictly or not at all."""

import pickle
import shlex

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import esper
from esper.contracts.errors import ConfigError
from esper.tasks.cnn import CNNHost
from esper.tasks.gpt import GPTHost
from esper.tasks.mlp import mlp
from esper.tasks.weights import put_weights, read_weights
from tests import warm

HOSTS = {"mlp": lambda: mlp((6, 8, 8, 3)), "cnn": CNNHost((1, 8, 8), 3), "gpt": GPTHost(16, 7)}


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_host_goes_on_from_the_bytes_of_a_file(kind, tmp_path):
    trained, new = HOSTS[kind](), HOSTS[kind]()
    save_file(_copy(trained), tmp_path / "w.safetensors")
    assert not all(torch.equal(new.state_dict()[key], value) for key, value in trained.state_dict().items())
    put_weights(new, read_weights(tmp_path / "w.safetensors"))
    assert all(torch.equal(new.state_dict()[key], value) for key, value in trained.state_dict().items())


def test_the_weights_of_a_wrapped_host_are_taken():
    wrapped, new = esper.wrap(mlp((6, 8, 8, 3))), mlp((6, 8, 8, 3))
    put_weights(new, esper.host_state_dict(wrapped))
    assert torch.equal(new[0].weight, wrapped[0].weight)


def _without(weights):
    return {name: value for name, value in weights.items() if name != "0.bias"}


MISFITS = {
    "missing": (_without, r"missing: '0.bias'\. Name the host"),
    "unknown": (lambda weights: weights | {"head.weight": torch.zeros(1)}, "unknown to the host: 'head.weight'"),
    "renamed": (
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        "missing: '0.bias', '0.weight', '2.bias' and 3 more; unknown to the host: 'module.0.bias', .* and 3 more",
    ),
    "another shape": (
        lambda weights: weights | {"0.weight": torch.zeros(8, 5)},
        r"'0.weight' is \[8, 5\] there and \[8, 6\] in the host",
    ),
    "grown": (
        lambda weights: _without(weights) | {"graft_1.w1": torch.zeros(1)},
        "are those of a network that has grown .*esper.host_state_dict",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named_and_changes_nothing(case):
    change, says = MISFITS[case]
    host = mlp((6, 8, 8, 3))
    before = _copy(host)
    with pytest.raises(ConfigError, match=says):
        put_weights(host, change(_copy(mlp((6, 8, 8, 3)))), "mine.safetensors")
    assert all(torch.equal(before[name], value) for name, value in host.state_dict().items())


def test_a_module_of_the_hosts_own_may_be_called_graft():
    """Negative control of what tells a grown network: only names that the host does not know."""
    hosts = [nn.ModuleDict({"graft_1": nn.Linear(2, 2)}) for _ in range(2)]
    put_weights(hosts[0], _copy(hosts[1]))
    assert torch.equal(hosts[0]["graft_1"].weight, hosts[1]["graft_1"].weight)


class Trap:
    """Tells whether it was built."""

    built = False

    def __init__(self) -> None:
        Trap.built = True

    def __reduce__(self):
        return Trap, ()


BAD_FILES = {
    "nothing there": ("none.safetensors", None, "There is no file"),
    "another format": ("w.npz", b"", r"read from .safetensors, not from 'w.npz'"),
    "noise": ("w.safetensors", b"noise", "holds no weights that can be read"),
    "cut": ("w.safetensors", b"\x08", "holds no weights that can be read"),
    "nothing in it": ("w.safetensors", b"", "holds no weights that can be read"),
    "not a number": ("w.safetensors", {"0.weight": torch.tensor([float("nan")])}, "not finite: '0.weight'"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_used_is_told(case, tmp_path):
    name, content, says = BAD_FILES[case]
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        save_file(content, tmp_path / name)
    with pytest.raises(ConfigError, match=says):
        read_weights(tmp_path / name)


def test_the_file_in_a_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder: name the file of weights in it\.$"):
        read_weights(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("preparation", "weights"):
        save_file(_copy(HOSTS["mlp"]()), tmp_path / "model" / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=r"in it, .*model.weights\.safetensors\.$"):
        read_weights(tmp_path)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"weight": Trap()}, tmp_path / "w.pt")
    Trap.built = False
    with pytest.raises(ConfigError, match="a pickle can run whatever is in it"):
        read_weights(tmp_path / "w.pt")
    assert not Trap.built
    saved, Trap.built = pickle.dumps(Trap()), False
    pickle.loads(saved)
    assert Trap.built, "the trap itself is broken"


def test_a_pickle_is_converted_by_the_line_that_the_message_gives(tmp_path):
    weights = _copy(HOSTS["mlp"]())
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="If you trust the file: python -c") as refusal:
        read_weights(tmp_path / "w.pt")
    _, *arguments = shlex.split(str(refusal.value).split("trust the file: ")[1])
    assert warm.run(arguments).returncode == 0
    found = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())
