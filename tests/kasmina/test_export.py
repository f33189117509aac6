"""The grown model as standard torch modules."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import esper
from esper import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from tests import warm
from tests.kasmina.growing import grow, mlp, place_of, release, wrapped

X = torch.linspace(-1, 1, 5 * 6).view(5, 6)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def host() -> nn.Module:
    torch.manual_seed(0)
    chain = mlp(8, 9, 9, 4)
    return nn.Sequential(OrderedDict(stem=nn.Linear(6, 8), block=Residual(), norm=nn.BatchNorm1d(8), chain=chain))


LAYERS = {"": 1, "stem": 3, "block": 1, "block.up": 5, "chain": 1, "chain.0:chain.2": 1, "chain.2": 4}
GROWN = {
    "model": [("", "all", "input")],
    "model, chunked": [("", "all", "chunk")],
    "block": [("block", "all", "input")],
    "layer": [("stem", "all", "input")],
    "layer, chunked": [("stem", 1, "chunk"), ("stem", 0, "chunk"), ("block.up", 3, "input")],
    "span": [("chain.0:chain.2", "all", "input")],
    "span and its last layer": [("chain.2", 2, "chunk"), ("chain.0:chain.2", "all", "input"), ("chain.2", 1, "input")],
    "chain and a span in it": [("chain", "all", "input"), ("chain.0:chain.2", "all", "input")],
    "two of one seed": [("chain.2", 3, "chunk"), ("chain.2", "all", "chunk"), ("chain.2", 3, "chunk")],
    "everywhere": [(layer_id, "all", "input") for layer_id in LAYERS],
}


def grown(name: str) -> nn.Module:
    model = wrapped(host(), LAYERS)
    for lifecycle, (layer_id, seed_id, reads) in enumerate(GROWN[name], start=1):
        place = place_of(model, layer_id)
        grow(place, seed_id, State.FOSSILIZED, hidden=2 + lifecycle % 2, reads=reads, lifecycle=lifecycle)
        release(place, seed_id)
    return model


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("name", GROWN)
def test_the_export_computes_the_same(name, is_training):
    model = grown(name).train(is_training)
    plain = esper.export(model)
    torch.testing.assert_close(plain(X), model(X))
    assert {module.training for module in plain.modules()} == {is_training}
    assert not any("esper" in type(module).__module__ for module in plain.modules())
    assert not any("_esper" in key for key in plain.state_dict())


@pytest.mark.parametrize("name", GROWN)
def test_growth_is_in_the_export(name):
    """Negative control: the host alone computes something else."""
    bare = host()
    model = grown(name)
    bare.load_state_dict(esper.host_state_dict(model))
    assert (esper.export(model.eval())(X) - bare.eval()(X)).abs().max() > 1e-3


def test_the_wrapped_model_is_left_as_it_was():
    model = grown("everywhere")
    before, classes = {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()]
    plain = esper.export(model)
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            tensor.zero_()
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


def test_where_nothing_grew_classes_and_keys_are_the_hosts():
    plain = esper.export(wrapped(host(), LAYERS))
    assert [(name, type(module)) for name, module in plain.named_modules()] == [
        (name, type(module)) for name, module in host().named_modules()
    ]
    assert list(plain.state_dict()) == list(host().state_dict())


@pytest.mark.parametrize("name", GROWN)
def test_classes_and_the_hosts_keys_stay_whatever_grew(name):
    plain, bare = esper.export(grown(name)), host()
    kinds = dict(plain.named_modules())
    assert {path: type(kinds[path]) for path, _ in bare.named_modules()} == {
        path: type(module) for path, module in bare.named_modules()
    }
    missing, more = plain.load_state_dict(bare.state_dict(), strict=False)
    assert more == []
    assert all("grown" in key for key in missing)


@pytest.mark.parametrize("name", ["everywhere", "layer, chunked"])
def test_modes_of_parts_are_kept(name):
    model = grown(name).train()
    model.norm.eval()
    model.block.eval()
    plain = esper.export(model)
    torch.testing.assert_close(plain(X), model(X))
    batch_norm = next(module for module in plain.modules() if isinstance(module, nn.BatchNorm1d))
    assert not batch_norm.training
    assert plain.training


def test_a_step_that_comes_twice_runs_twice():
    act, shared = nn.Tanh(), nn.Linear(8, 8)
    torch.manual_seed(0)
    model = wrapped(nn.Sequential(nn.Linear(6, 8), act, shared, act, shared, act, nn.Linear(8, 4)), ["0:2", "2"])
    grow(place_of(model, "0:2"), "all", State.FOSSILIZED, hidden=3)
    torch.testing.assert_close(esper.export(model)(X), model(X))
    grow(place_of(model, "2"), 3, State.FOSSILIZED, hidden=3, lifecycle=9)
    torch.testing.assert_close(esper.export(model)(X), model(X))


@pytest.mark.parametrize("name", ["everywhere", "layer, chunked"])
def test_torch_export_takes_it_and_keeps_the_batch_size_open(name):
    plain = esper.export(grown(name).eval())
    program = torch.export.export(plain, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(X.repeat(3, 1)), plain(X.repeat(3, 1)))


def test_it_loads_without_esper(tmp_path):
    torch.manual_seed(0)
    model = wrapped(mlp(6, 8, 8, 4), {"": 1, "0:2": 1, "2": 4}).eval()
    grow(place_of(model, ""), "all", State.FOSSILIZED, hidden=3)
    grow(place_of(model, "0:2"), "all", State.FOSSILIZED, hidden=3, lifecycle=2)
    grow(place_of(model, "2"), 1, State.FOSSILIZED, hidden=3, lifecycle=3)
    plain = esper.export(model)
    torch.save(plain, tmp_path / "module.pt")
    torch.export.save(torch.export.export(plain, (X,)), tmp_path / "program.pt2")
    torch.save({"x": X, "y": model(X).detach()}, tmp_path / "samples.pt")
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "esper":
            raise ImportError("Esper is not installed here")
sys.meta_path.insert(0, Absent())
import torch
samples = torch.load("samples.pt")
for model in (torch.load("module.pt", weights_only=False), torch.export.load("program.pt2").module()):
    torch.testing.assert_close(model(samples["x"]), samples["y"])
assert not any(name.split(".")[0] == "esper" for name in sys.modules)
try:
    import esper
except ImportError:
    print("equal, without esper")
"""
    result = warm.run(["-c", code], folder=tmp_path)
    assert result.stdout.strip() == "equal, without esper", result.stderr


def test_a_half_precision_model_exports_in_its_dtype():
    model = grown("everywhere").eval().bfloat16()
    plain = esper.export(model)
    assert {tensor.dtype for tensor in plain.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(plain(X.bfloat16()), model(X.bfloat16()))


@pytest.mark.parametrize("state", [State.GRAFTING, State.EVALUATING, State.FINE_TUNING])
def test_a_live_graft_is_refused_by_place_with_the_remedy(state):
    model = wrapped(host(), LAYERS)
    grow(place_of(model, "chain.2"), 1, state, hidden=2)
    with pytest.raises(ConfigError, match=r"'chain\.2'.*session\.finish\(\)"):
        esper.export(model)


def test_a_control_is_refused():
    model = wrapped(host(), LAYERS)
    grow(place_of(model, "stem"), "all", State.FOSSILIZED, blueprint="placebo", hidden=2)
    with pytest.raises(ConfigError, match="control"):
        esper.export(model)


def test_the_summary_tells_what_each_place_carries():
    model = grown("span")
    grow(place_of(model, "stem"), 1, State.GRAFTING, hidden=2, lifecycle=7)
    table = esper.summary(model)
    lines = {line.split()[0]: line for line in table.splitlines()}
    assert "1 GRAFTING" in lines["stem"]
    assert "2 DORMANT" in lines["stem"]
    assert "(model)" in lines
    grown_parameters = sum(place.arena.num_parameters for place in places(model))
    host_parameters = sum(parameter.numel() for parameter in host().parameters())
    assert table.splitlines()[-1] == f"host {host_parameters:,} parameters, grown {grown_parameters:,}"
