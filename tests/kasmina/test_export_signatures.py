"""Exports of modules with any signature, output, hook or weight of their own: a grown module stays what it is."""

import copy
import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import esper
from esper import ConfigError
from esper.contracts.lifecycle import State
from esper.integrations.source import source_of
from esper.kasmina.host.wrapping import traced
from tests.kasmina.growing import grow, mlp, place_of, wrapped

X = torch.linspace(-1, 1, 5 * 6).view(5, 6)


@dataclasses.dataclass
class Pair:
    y: torch.Tensor
    note: str = ""


class Named(NamedTuple):
    note: str
    y: torch.Tensor


OUTPUTS = {
    "tensor": lambda y: y,
    "tuple": lambda y: ("a", y, None),
    "list": lambda y: ["a", y],
    "named": lambda y: Named("a", y),
    "mapping": lambda y: {"note": "a", "y": y},
    "dataclass": lambda y: Pair(y, "a"),
}


class Block(nn.Module):
    """Takes anything, gives its output in any form."""

    def __init__(self, form):
        super().__init__()
        self.inner, self.form = nn.Linear(6, 6), form

    def forward(self, x, *args, scale=1.0, **kwargs):
        return OUTPUTS[self.form](torch.tanh(self.inner(x)) * scale * kwargs.get("more", 1.0))


class Calling(nn.Module):
    """Calls its block by position or by name, and keeps what it gave."""

    def __init__(self, form, by_name):
        super().__init__()
        self.block, self.head, self.by_name = Block(form), nn.Linear(6, 3), by_name

    def forward(self, x):
        given = self.block(scale=2.0, x=x, more=0.5) if self.by_name else self.block(x, None, more=0.5)
        y = given if isinstance(given, torch.Tensor) else next(t for t in values(given) if isinstance(t, torch.Tensor))
        return self.head(y), [type(given).__name__, *(v for v in values(given) if not isinstance(v, torch.Tensor))]


def values(given):
    if dataclasses.is_dataclass(given):
        return list(vars(given).values())
    return list(given.values()) if isinstance(given, dict) else list(given)


def reloaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("form", OUTPUTS)
def test_a_block_with_any_signature_and_output_is_exported(form, by_name):
    torch.manual_seed(0)
    bare = Calling(form, by_name)
    model = esper.wrap(copy.deepcopy(bare), esper.GrowthConfig(layers=["block"]), example=X)
    grow(place_of(model, "block"), "all", State.FOSSILIZED, hidden=3)
    plain, (wanted, kinds) = esper.export(model), model(X)
    for one in (plain, copy.deepcopy(plain), reloaded(plain)):
        y, its_kinds = one(X)
        assert torch.equal(y, wanted)
        assert its_kinds == kinds
    assert (bare(X)[0] - wanted).abs().max() > 1e-2


def test_an_export_is_called_by_position_or_name_whatever_the_example_was():
    model = esper.wrap(Block("tensor"), esper.GrowthConfig(layers=[""]), example={"x": X})
    grow(place_of(model, ""), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    assert torch.equal(plain(X), model(X))
    assert torch.equal(plain(more=2.0, x=X), model(X, more=2.0))


HOOKS = {
    "forward": lambda module: module.register_forward_hook(lambda _, args, output: output * 2 + 1),
    "forward pre": lambda module: module.register_forward_pre_hook(lambda _, args: (args[0] * 2 + 1,)),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("layer_id", ["2", "", "0"])
def test_hooks_of_the_host_run_in_the_same_order(hook, when, layer_id):
    model = mlp(6, 6, 6)
    if when == "before":
        HOOKS[hook](model.get_submodule(layer_id))
    wrapped(model, {layer_id: 1})
    if when == "after":
        HOOKS[hook](model.get_submodule(layer_id))
    grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    assert torch.equal(esper.export(model)(X), model(X))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("grows_at", [["0:2"], ["0:2", "2", "2:4"]])
@pytest.mark.parametrize(("hook", "end"), [("forward", "2"), ("forward pre", "0")])
def test_hooks_at_the_ends_of_a_span_run_in_the_same_order(hook, end, grows_at, when):
    model = mlp(6, 6, 6, 6)
    if when == "before":
        HOOKS[hook](model.get_submodule(end))
    wrapped(model, dict.fromkeys(grows_at, 1))
    if when == "after":
        HOOKS[hook](model.get_submodule(end))
    for number, layer_id in enumerate(grows_at, start=1):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3, lifecycle=number)
    assert torch.equal(esper.export(model)(X), model(X))


CHANGES = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "parametrizations": parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["0", "0:2"])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_compute_their_weight_are_exported(change, place, when):
    model = mlp(6, 6, 6)
    if when == "before":
        CHANGES[change](model[0])
    esper.wrap(model, esper.GrowthConfig(layers={place: 1}), example=X)
    if when == "after":
        CHANGES[change](model[0])
    grow(place_of(model, place), "all", State.FOSSILIZED, hidden=3)
    model.eval()(X)  # leaves a weight behind that is no leaf
    assert torch.equal(esper.export(model)(X), model(X))


def test_a_parametrization_that_came_later_is_left_by_unwrap():
    model = esper.wrap(mlp(6, 6, 3))
    parametrizations.weight_norm(model[0])
    wanted = model(X)
    esper.unwrap(model)
    assert torch.equal(model(X), wanted)
    parametrize.remove_parametrizations(model[0], "weight")
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    torch.testing.assert_close(model(X), wanted)


def test_a_parametrization_is_removed_below_the_seeds():
    model = mlp(6, 6, 3)
    parametrizations.weight_norm(model[0])
    esper.wrap(model, esper.GrowthConfig(layers={"0": 1}), example=X)
    grow(place_of(model, "0"), "all", State.FOSSILIZED, hidden=3)
    wanted = model(X)
    parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(model(X), wanted)
    plain = esper.export(model)
    assert type(plain[0]) is nn.Linear
    torch.testing.assert_close(plain(X), wanted)


class Reads(nn.Module):
    """Reads a weight of its child, and holds a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.rnn, self.linear = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 6)

    def forward(self, x):
        return self.linear(self.rnn(x.unsqueeze(1))[0][:, 0]) + self.linear.weight.sum()


def test_exports_are_copied_saved_and_loaded_strictly():
    torch.manual_seed(0)
    model = esper.wrap(Reads(), esper.GrowthConfig(layers=["rnn", "linear"]), example=X)
    for layer_id in ("rnn", "linear"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    wanted = plain(X)
    assert torch.equal(wanted, model(X))
    other = copy.deepcopy(plain)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2.0)
    assert torch.equal(plain(X), wanted)
    assert not torch.equal(other(X), wanted)
    other.load_state_dict(plain.state_dict(), strict=True)
    for one in (other, reloaded(plain)):
        assert torch.equal(one(X), wanted)


def test_an_export_can_be_wrapped_grown_and_exported_again():
    model = wrapped(mlp(6, 6, 6), {"": 1, "0": 1})
    for layer_id in ("", "0"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    config = esper.GrowthConfig(layers={"": 1, "0": 1, "0:2": 1})
    again = esper.wrap(esper.export(model), config, example=X)
    assert torch.equal(again(X), model(X))
    for layer_id in ("", "0", "0:2"):
        grow(place_of(again, layer_id), "all", State.FOSSILIZED, hidden=3, lifecycle=9)
    plain = esper.export(again)
    assert torch.equal(plain(X), again(X))
    assert torch.equal(reloaded(plain)(X), again(X))
    with pytest.raises(ConfigError, match=r"runs what a span has grown.*Go on with the wrapped model"):
        esper.wrap(plain)


class Walking(nn.Module):
    """Runs the steps of a chain itself, in one of several ways, or runs all its children."""

    def __init__(self, how):
        super().__init__()
        self.body, self.head, self.how = mlp(6, 6, 6, 6), nn.Linear(6, 3), how

    def forward(self, x):
        if self.how == "called":
            return self.head(self.body(x))
        if self.how == "slices":
            return self.head(self.body[3:](self.body[:3](x)))
        if self.how == "index":
            for index in range(len(self.body)):
                x = self.body[index](x)
            return self.head(x)
        if self.how == "all children":
            for child in self.children():
                x = child(x)
            return x
        for step in self.body.children() if self.how == "children" else self.body:
            x = step(x)
        return self.head(x)


WALKS = ["slices", "index", "children", "iteration"]


@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize("how", ["called", *WALKS])
def test_a_span_of_a_container_that_is_walked_is_exported(how, example):
    model = esper.wrap(Walking(how), esper.GrowthConfig(layers=["body.0:body.2", "body.2:body.4"]), example=example)
    with traced(model):  # as the first step of a session
        model(X)
    for layer_id in ("body.0:body.2", "body.2:body.4"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    plain, wanted = esper.export(model, example=X), model(X)
    other = copy.deepcopy(plain)
    for _ in range(2):
        for one in (plain, other, reloaded(plain)):
            assert torch.equal(one(X), wanted)
    with torch.no_grad():
        for parameter in other.body[2].parameters():
            parameter.zero_()
    assert torch.equal(plain(X), wanted)


def test_the_last_module_of_a_span_runs_outside_it_too():
    """By index, so that the container does not run the span."""
    model = Walking("index")
    model.body.append(model.body[2])
    esper.wrap(model, esper.GrowthConfig(layers=["body.0:body.2"]), example=X)
    grow(place_of(model, "body.0:body.2"), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    assert torch.equal(plain(X), model(X))
    assert torch.equal(reloaded(plain)(X), model(X))


@pytest.mark.parametrize("how", ["called", *WALKS])
def test_an_export_computes_the_same_however_the_span_is_called_later(how):
    model = esper.wrap(Walking("called"), esper.GrowthConfig(layers=["body.0:body.2", "body.2:body.4"]), example=X)
    for layer_id in ("body.0:body.2", "body.2:body.4"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    written, scope = Walking(how), {}
    exec("\n".join(source_of(plain)), scope)
    scope["grow"](written)
    written.load_state_dict(plain.state_dict())
    model.how = plain.how = how
    for one in (plain, copy.deepcopy(plain), reloaded(plain), written):
        assert torch.equal(one(X), model(X))


def test_an_export_in_which_a_span_has_grown_is_wrapped_grown_and_exported_again():
    """At the same span, and at one that shares its end."""
    plain, spans = Walking("iteration"), ["body.0:body.2", "body.2:body.4"]
    for times in (1, 2):
        model = esper.wrap(plain, esper.GrowthConfig(layers=spans), example=X)
        for layer_id in spans:
            grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3, lifecycle=times)
        plain = esper.export(model)
        for one in (plain, reloaded(plain)):
            assert torch.equal(one(X), model(X))


@pytest.mark.parametrize("how", ["called", "iteration"])
def test_an_exported_span_serves_several_threads_and_torch_export(how):
    model = esper.wrap(Walking(how), esper.GrowthConfig(layers=["body.0:body.2"]), example=X).eval()
    grow(place_of(model, "body.0:body.2"), "all", State.FOSSILIZED, hidden=3)
    plain = reloaded(esper.export(model))
    rendezvous = Barrier(2)
    plain.body[1].register_forward_hook(lambda *_: (rendezvous.wait(), None)[1])
    with ThreadPoolExecutor(2) as threads:
        assert all(map(torch.equal, threads.map(plain, (X, -X)), map(model, (X, -X))))
    plain = esper.export(model)
    assert torch.equal(torch.export.export(plain, (X,)).module()(X), model(X))
    assert torch.equal(plain(X), model(X))


@pytest.mark.parametrize("how", ["called", "all children", *WALKS])
def test_layers_in_containers_that_are_walked_are_exported(how):
    model = esper.wrap(Walking(how), esper.GrowthConfig(layers=["body.0", "body.2"]), example=X)
    for layer_id in ("body.0", "body.2"):
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    assert torch.equal(esper.export(model)(X), model(X))


def test_an_encoder_leaves_its_fast_path_for_what_has_grown_beneath():
    """In eval mode it would read weights and call nothing."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    bare, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), X.unsqueeze(0)
    for layer_id in ("layers.0.linear1", "layers.0.self_attn", "layers.1"):
        model = esper.wrap(copy.deepcopy(bare), esper.GrowthConfig(layers=[layer_id], seeds_per_layer=1), example=x)
        grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
        with torch.no_grad():
            assert torch.equal(esper.export(model)(x), model(x))
            assert (bare(x) - model(x)).abs().max() > 1e-3


class Twice(nn.Module):
    """Has the last step of a chain under a name of its own too, beside others."""

    def __init__(self):
        super().__init__()
        self.body, self.head = mlp(6, 6, 6), nn.Linear(6, 3)
        self.last = self.body[2]

    def forward(self, x):
        return self.head(x) + self.head(self.last(self.body(x)))


def test_only_the_container_of_a_span_runs_it():
    model = esper.wrap(Twice(), esper.GrowthConfig(layers=["body.0:body.2"]), example=X)
    grow(place_of(model, "body.0:body.2"), "all", State.FOSSILIZED, hidden=3)
    assert torch.equal(esper.export(model)(X), model(X))


@pytest.mark.parametrize("layer_id", ["", "body"])
def test_what_a_module_that_walks_its_children_has_grown_is_none_of_them(layer_id):
    model = esper.wrap(Walking("all children"), esper.GrowthConfig(layers=[layer_id]), example=X)
    grow(place_of(model, layer_id), "all", State.FOSSILIZED, hidden=3)
    plain = esper.export(model)
    assert torch.equal(plain(X), model(X))
    assert [name for name, _ in plain.named_children()] == ["body", "head"]
    assert [type(step) for step in plain.body] == [type(step) for step in mlp(6, 6, 6, 6)]


class Bypassing(nn.Module):
    """Reads the weight of a layer that is a plain Linear instead of calling it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        if type(self.linear) is nn.Linear:
            return nn.functional.linear(x, self.linear.weight, self.linear.bias)
        return self.linear(x)


def test_an_export_that_computes_something_else_is_refused_unless_it_is_not_checked():
    model = wrapped(Bypassing(), ["linear"])
    grow(place_of(model, "linear"), 0, State.FOSSILIZED, hidden=3)
    assert not torch.equal(esper.export(model)(X), model(X))
    with pytest.raises(ConfigError, match=r"something else on the example.*check=False"):
        esper.export(model, example=X)
    model._esper.example = X
    with pytest.raises(ConfigError, match="something else"):
        esper.export(model)
    assert not torch.equal(esper.export(model, check=False)(X), model(X))


def test_the_example_goes_where_the_model_goes_and_is_not_copied():
    model = esper.wrap(mlp(6, 6, 3), example={"input": X})
    grow(place_of(model, "2"), 0, State.FOSSILIZED, hidden=3)
    assert model._esper.example["input"] is X
    assert copy.deepcopy(model)._esper.example is None
    esper.export(model.double())
    assert X.dtype == torch.float32
    assert model._esper.example["input"].dtype == torch.float64
