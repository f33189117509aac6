"""Wrapping by class swap: what survives it, and what is refused."""

import abc
import copy
import functools
from collections import OrderedDict

import pytest
import torch
from torch import nn

import esper
from esper import ConfigError, GrowthConfig
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import growth_config, place_named
from tests.kasmina.growing import grow, mlp, place_of, wrapped


class Tied(nn.Module):
    """An output layer that uses the input layer's weight, and one Linear layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.embed, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 6)
        self.head.weight = nn.Parameter(self.embed.weight.detach().t().contiguous())
        self.again = self.shared

    def forward(self, x):
        h = self.again(torch.relu(self.shared(torch.relu(self.embed(x)))))
        return self.head(h) + h @ self.embed.weight


def layout(model: nn.Module) -> list:
    """Everything about a model that a refused wrap must leave alone."""
    layers = []
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks, *module._forward_pre_hooks]
        children = [child for child, _ in module.named_children()]
        layers.append((name, type(module), module.training, list(vars(module)), hooks, children))
    return layers


def state_of(model: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_wrap_returns_the_same_object_with_the_same_parameters():
    model = mlp(6, 8, 4)
    weight, parameters = model[0].weight, dict(model.named_parameters())
    assert esper.wrap(model) is model
    assert model[0].weight is weight
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert isinstance(model[0], nn.Linear)
    assert isinstance(model, nn.Sequential)
    assert type(model[0]).__name__ == "KasminaLinear"


def test_host_keys_keep_their_names_and_order():
    keys = list(mlp(6, 8, 4).state_dict())
    assert list(esper.host_state_dict(esper.wrap(mlp(6, 8, 4)))) == keys


def test_a_bare_checkpoint_loads_strictly_into_a_wrapped_model_and_leaves_its_seeds_alone():
    bare, model = mlp(6, 8, 4), wrapped(mlp(6, 8, 4), ["0"])
    grow(place_of(model, "0"), 2, hidden=3)
    with torch.no_grad():
        bare[0].weight.add_(1.0)
    before = {name: tensor for name, tensor in state_of(model).items() if "_esper" in name}
    result = model.load_state_dict(bare.state_dict(), strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(model[0].weight, bare[0].weight)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_loading_does_not_write_into_the_callers_state_dict():
    bare, model = mlp(6, 8, 4).state_dict(), esper.wrap(mlp(6, 8, 4))
    keys = list(bare)
    model.load_state_dict(bare)
    assert list(bare) == keys


def test_a_host_state_dict_loads_strictly_into_the_bare_model():
    bare, model = mlp(6, 8, 8, 4), esper.wrap(mlp(6, 8, 8, 4))
    grow(place_of(model, ""), hidden=3)
    with torch.no_grad():
        model[0].bias.add_(1.0)
    bare.load_state_dict(esper.host_state_dict(model), strict=True)
    assert torch.equal(bare[0].bias, model[0].bias)


def test_unwrap_gives_back_the_bare_model():
    model = mlp(6, 8, 8, 4)
    before = layout(model)
    assert esper.unwrap(esper.wrap(model)) is model
    assert layout(model) == before
    esper.wrap(model)  # and it can be wrapped again


def test_unwrap_of_a_grown_model_is_refused_by_place_with_the_remedy():
    model = wrapped(mlp(6, 8, 4), ["0"])
    grow(place_of(model, "0"), 1, hidden=2)
    before = layout(model)
    with pytest.raises(ConfigError, match=r"grown at '0'.*esper\.export"):
        esper.unwrap(model)
    assert layout(model) == before


@pytest.mark.parametrize("is_training", [True, False])
def test_a_dormant_model_computes_the_same_bits(is_training):
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 4))
    bare.train(is_training)
    model = esper.wrap(nn.Sequential(OrderedDict(bare.named_children())).train(is_training))
    model = esper.wrap(esper.unwrap(model))
    x = torch.randn(5, 6)
    torch.manual_seed(1)
    expected = bare(x)
    torch.manual_seed(1)
    assert torch.equal(model(x), expected)


def test_frozen_parts_stay_in_eval_mode():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Linear(8, 4).eval())
    esper.wrap(model)
    assert [module.training for module in model] == [True, False, True, False]
    assert {place.layer_id: place.training for place in places(model)} == {"": True, "0": True, "3": False}


def test_seeds_follow_the_mode_of_their_layer():
    model = esper.wrap(mlp(6, 8, 4))
    model.eval()
    assert not any(module.training for module in model.modules())
    model[0].train()
    assert place_of(model, "0").training
    assert not place_of(model, "2").training


def test_tied_weights_and_shared_modules_survive():
    torch.manual_seed(0)
    model = wrapped(Tied(), ["embed", "shared", "head"])
    assert model.again is model.shared
    assert [place.layer_id for place in places(model)] == ["embed", "shared", "head"]
    x = torch.randn(3, 6)
    bare_output = model(x)
    grow(place_of(model, "shared"), 3, hidden=2)
    assert not torch.equal(model(x), bare_output)


def test_a_graft_on_a_shared_module_acts_at_every_call():
    torch.manual_seed(0)
    model = wrapped(Tied(), ["shared"])
    lifecycle = grow(place_of(model, "shared"), 3, hidden=2)
    graft = place_of(model, "shared").arena.grafts[lifecycle]
    calls = []
    delta = type(graft.blueprint).delta
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(graft.blueprint), "delta", lambda self, params, x: calls.append(x.shape) or delta(self, params, x)
        )
        model(torch.randn(3, 6))
    assert len(calls) == 2


def test_containers_hide_esper():
    names = ["first", "act", "last"]
    model = nn.Sequential(OrderedDict(zip(names, mlp(6, 8, 4), strict=True)))
    steps = list(model)
    esper.wrap(model)
    assert list(model) == steps
    assert len(model) == 3
    assert (model[0], model[-1]) == (steps[0], steps[-1])
    assert list(model.children()) == steps
    assert [name for name, _ in model.named_children()] == names
    assert list(model[1:]) == steps[1:]
    assert list(model[1:].state_dict()) == ["last.weight", "last.bias"] + [
        key for key in model[1:].state_dict() if "_esper" in key
    ]
    assert type(model[:2]) is nn.Sequential
    with pytest.raises(IndexError):
        model[3]
    model.append(nn.ReLU())
    assert [name for name, _ in model.named_children()] == [*names, "3"]
    assert model(torch.randn(2, 6)).min() >= 0


class Blocks(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class Named(nn.ModuleDict):
    def forward(self, x):
        for block in self.values():
            x = block(x)
        return x


def test_a_module_list_with_a_forward_hides_esper():
    model = wrapped(Blocks([nn.Linear(6, 8), nn.Linear(8, 4)]), ["", "0"])
    assert len(model) == 2
    assert [type(module).__name__ for module in model] == ["KasminaLinear", "Linear"]
    assert type(model[0:1]) is Blocks
    assert model(torch.randn(2, 6)).shape == (2, 4)


def test_a_module_dict_with_a_forward_hides_esper():
    model = wrapped(Named({"first": nn.Linear(6, 8), "last": nn.Linear(8, 4)}), ["", "last"])
    assert list(model) == list(model.keys()) == ["first", "last"]
    assert [name for name, _ in model.items()] == ["first", "last"]
    assert len(model) == len(model.values()) == 2
    assert "first" in model
    assert "_esper" not in model
    assert model(torch.randn(2, 6)).shape == (2, 4)


def test_apply_reaches_the_host_only():
    """An initialiser must not draw numbers for, or write into, Esper's own tensors."""
    model, seen = esper.wrap(mlp(6, 8, 4)), []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["KasminaLinear", "ReLU", "KasminaLinear", "KasminaSequential"]


def test_a_class_with_a_metaclass_of_its_own_can_be_wrapped():
    class Abstract(nn.Module, abc.ABC):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(x)

    model = wrapped(Abstract(), ["", "fc"])
    assert isinstance(model, Abstract)
    assert model(torch.randn(2, 6)).shape == (2, 4)


# Which places there are


def test_by_default_linear_layers_the_model_and_halves_of_chains_carry_seeds():
    found = {place.layer_id: place.kind for place in places(esper.wrap(mlp(6, 8, 8, 4)))}
    assert found == {"": "model", "0:2": "span", "2:4": "span", "0": "layer", "2": "layer", "4": "layer"}


def test_layers_share_a_global_number_of_seeds_capped_at_their_channels():
    model = wrapped(mlp(6, 40, 4), ["0", "2", ""], seeds_per_layer=16)
    assert {place.layer_id: place.state.num_seeds for place in places(model)} == {"0": 16, "2": 4, "": 1}


def test_patterns_are_globs_on_dotted_names_and_may_give_numbers_of_seeds():
    model = nn.Sequential(OrderedDict(encoder=mlp(6, 8, 8), decoder=mlp(8, 8, 4)))
    wrapped(model, {"encoder.*": 2, "decoder": 3, "decoder.2": 1})
    assert {place.layer_id: place.state.num_seeds for place in places(model)} == {
        "encoder.0": 2,
        "encoder.2": 2,
        "decoder": 3,
        "decoder.2": 1,
    }


def test_a_span_reads_firsts_input_and_writes_lasts_output():
    model = wrapped(mlp(6, 8, 10, 4), ["0:2"])
    place = place_of(model, "0:2")
    assert place.ports[:2] == (6, 10)
    x = torch.randn(3, 6)
    before = model[:3](x)
    grow(place, hidden=2)
    assert model(x).shape == (3, 4)
    assert not torch.equal(model[:3](x), before)


def test_a_span_whose_forward_was_cut_short_still_copies_and_reads_the_next_input():
    model = wrapped(mlp(6, 8, 10, 4), ["0:2"])
    grow(place_of(model, "0:2"), hidden=2)
    x = torch.randn(3, 6)
    expected = model(x)
    handle = model[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(3, 6, requires_grad=True) * 2)
    handle.remove()
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(model(x), expected)


def test_a_module_that_ends_a_span_and_runs_elsewhere_too_is_left_alone_there():
    """The graft belongs to the span, not to the activation that happens to close it."""
    act = nn.ReLU()
    model = wrapped(nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 3), act), ["0:1"])
    grow(place_of(model, "0:1"), hidden=2, scale=None)
    assert model(torch.randn(5, 6)).shape == (5, 3)


def test_weights_shared_within_a_chain_do_not_stop_the_default_places():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 4))
    found = [place.layer_id for place in places(esper.wrap(model))]
    assert {"", "0", "2", "6"} <= set(found)
    assert len(found) == len(set(found))


def test_an_example_measures_widths_without_a_trace():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.inner, self.scale = nn.LayerNorm(8), nn.Linear(8, 8), nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x + self.scale * torch.dropout(self.inner(self.norm(x)), 0.5, True)

    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(embed=nn.Linear(6, 8), block=Block(), head=nn.Linear(8, 4)))
    model.block.norm.eval()
    with pytest.raises(ConfigError, match=r"widths of 'block' \(Block\).*example"):
        wrapped(model, ["block"])
    random_state = torch.get_rng_state()
    esper.wrap(model, GrowthConfig(layers=["block"]), example=torch.randn(3, 6, generator=torch.Generator()))
    assert place_of(model, "block").ports[:2] == (8, 8)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (model.block.training, model.block.norm.training) == (True, False)
    assert not model.block._forward_hooks


# Refusals


def _compiled():
    return torch.compile(mlp(6, 8, 4), backend="eager")


def _compiled_in_place():
    model = mlp(6, 8, 4)
    model.compile(backend="eager")
    return model


def _compiled_part():
    return nn.Sequential(OrderedDict(stem=nn.Linear(6, 6), body=_compiled()))


class DistributedDataParallel(nn.Module):
    """torch's own needs a process group; it is refused by its name."""

    def __init__(self):
        super().__init__()
        self.module = mlp(6, 8, 4)

    def forward(self, x):
        return self.module(x)


class Around(nn.Module):
    """Like torch's data-parallel classes."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def _traced_part():
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(mlp(6, 8, 4), torch.zeros(1, 6))
    return nn.Sequential(OrderedDict(stem=nn.Linear(6, 6), body=traced))


def _own_forward(name):
    model = mlp(6, 8, 4)
    module = model.get_submodule(name)
    module.forward = functools.partial(type(module).forward, module)
    return model


class Walker(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        for module in self._modules.values():
            x = module(x)
        return x


class Scale(nn.Module):
    """A layer that Esper does not know."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


class WalkerSequence(nn.Sequential):
    def forward(self, x):
        return functools.reduce(lambda x, module: module(x), self._modules.values(), x)


class Final(nn.Module):
    """Takes no subclasses."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def __init_subclass__(cls, **options):
        raise TypeError("Final is final")

    def forward(self, x):
        return self.fc(x)


def _final_part():
    return nn.Sequential(OrderedDict(stem=nn.Linear(6, 6), body=Final()))


def _with_list():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.items = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 4)])

        def forward(self, x):
            return self.items[1](self.items[0](x))

    return Listed()


REFUSALS = {
    "compiled": (_compiled, {}, r"The model is already a OptimizedModule.*bare model first"),
    "compiled in place": (_compiled_in_place, {}, r"The model is already a compiled module.*bare model first"),
    "compiled part": (_compiled_part, {}, r"'body' is already a OptimizedModule"),
    "distributed": (
        DistributedDataParallel,
        {},
        r"already a DistributedDataParallel.*bare model first, then put it into",
    ),
    "scripted part": (_traced_part, {}, r"'body' is scripted.*before torch\.jit\.script"),
    "lazy": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LazyLinear(4)), {}, r"'1' is lazy.*example batch"),
    "instance forward": (lambda: _own_forward("2"), {"layers": ["2"]}, r"'2' \(Linear\).*on the instance.*a class"),
    "instance forward, by glob": (lambda: _own_forward("2"), {"layers": ["*"]}, r"'2' \(Linear\).*on the instance"),
    "instance forward, by default": (lambda: _own_forward(""), {}, r"\(Sequential\).*on the instance"),
    "walks _modules": (Walker, {"layers": [""]}, r"Walker\.forward walks self\._modules.*children"),
    "root walks _modules": (Walker, {"layers": ["first"]}, r"The model: Walker\.forward walks self\._modules"),
    "sequence walks _modules": (lambda: WalkerSequence(*mlp(6, 8, 4)), {}, r"WalkerSequence\.forward walks"),
    "final root": (Final, {"layers": ["fc"]}, r"The model \(Final\) cannot be subclassed \(Final is final\)"),
    "final part": (_final_part, {"layers": ["stem", "body"]}, r"'body' \(Final\) cannot be subclassed.*Leave it out"),
    "no match": (lambda: mlp(6, 8, 4), {"layers": ["0", "encoder.*"]}, r"'encoder\.\*' matches no module"),
    "no host": (lambda: mlp(6, 8, 4), {"layers": ["1"]}, r"Cannot tell the widths of '1' \(ReLU\)"),
    "never called": (_with_list, {"layers": ["items"]}, r"'items' is a ModuleList, which is never called"),
    "nothing by default": (Scale, {}, r"layers=\[\.\.\.\]"),
    "no places": (lambda: mlp(6, 8, 4), {"layers": []}, r"names no place"),
    "too many seeds": (lambda: mlp(6, 8, 4), {"layers": {"0": 8, "2": 5}}, r"'2' has 4 output channels.*5 seeds"),
    "no number of seeds": (lambda: mlp(6, 8, 4), {"layers": {"0": 0}}, r"layers\['0'\].*at least 1, not 0"),
    "no span": (lambda: mlp(6, 8, 4), {"layers": ["2:0"]}, r"'2:0' is no span"),
    "span of nothing": (lambda: mlp(6, 8, 4), {"layers": ["0:7"]}, r"no module '7'"),
    "span across": (lambda: nn.Sequential(mlp(6, 8), mlp(8, 4)), {"layers": ["0.0:1.0"]}, r"is no span"),
    "no parameters": (lambda: nn.Sequential(nn.ReLU()), {}, r"no parameters"),
    "no such blueprint": (lambda: mlp(6, 8, 4), {"blueprints": ["bottelneck_mlp"]}, r"Did you mean 'bottleneck_mlp'"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, about lazy modules
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_wrapped_is_refused_by_name_and_left_alone(name):
    make, config, message = REFUSALS[name]
    model = make()
    before = layout(model)
    with pytest.raises(ConfigError, match=message):
        esper.wrap(model, GrowthConfig(**config))
    assert layout(model) == before


def test_a_class_that_takes_no_subclasses_may_lie_between_places():
    assert wrapped(_final_part(), ["stem", "body.fc"])(torch.zeros(1, 6)).shape == (1, 4)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x, *, scale):
        return self.fc(x) * scale


@pytest.mark.parametrize(
    "example", [torch.zeros(2, 6), (torch.zeros(2, 6), torch.ones(1)), {"x": torch.zeros(2, 6), "size": 1}]
)
def test_an_example_that_the_model_cannot_be_called_on_is_refused_with_the_forms_there_are(example):
    model = TwoInputs()
    before = layout(model)
    with pytest.raises(ConfigError, match=r"cannot be called on the example.*tuple.*positional.*mapping.*keyword"):
        esper.wrap(model, example=example)
    assert layout(model) == before


def test_an_example_by_keywords_is_called_by_keywords():
    model = esper.wrap(TwoInputs(), example={"x": torch.zeros(2, 6), "scale": 2.0})
    assert place_of(model, "fc").ports[:2] == (6, 4)


@pytest.mark.parametrize(
    ("around", "remedy"),
    [(lambda model: torch.compile(model, backend="eager"), r"model\.compile"), (Around, "one process")],
    ids=["compiled", "wrapper"],
)
def test_a_model_around_a_wrapped_one_is_refused_with_the_remedy(around, remedy):
    with pytest.raises(ConfigError, match=f"around a wrapped model. Give Session the wrapped model itself .*{remedy}"):
        growth_config(around(esper.wrap(mlp(6, 8, 4))))


def test_a_wrapped_model_may_have_a_child_called_module():
    assert growth_config(esper.wrap(Around(mlp(6, 8, 4)), GrowthConfig(layers=["module"]))).layers == ["module"]


def test_the_whole_model_is_shown_among_the_valid_places():
    with pytest.raises(ConfigError, match=r"no place 'nowhere'\. Valid: \"\", 0, 2\.$"):
        place_named(wrapped(mlp(6, 8, 4), ["", "0", "2"]), "nowhere")


def test_a_second_wrap_is_refused_and_changes_nothing():
    model = esper.wrap(mlp(6, 8, 4))
    before = layout(model)
    with pytest.raises(ConfigError, match="already carries seeds"):
        esper.wrap(model)
    assert layout(model) == before


def test_a_wrapped_part_is_refused_by_its_name():
    model = nn.Sequential(OrderedDict(stem=nn.Linear(6, 6), body=esper.wrap(mlp(6, 8, 4))))
    with pytest.raises(ConfigError, match="'body' already carries seeds"):
        esper.wrap(model)


def test_a_named_place_of_indices_is_refused_after_measuring():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 8)

        def forward(self, x):
            return self.linear(x).argmax(-1)

    model = nn.Sequential(Codes(), nn.Embedding(8, 3))
    before = layout(model)
    with pytest.raises(ConfigError, match="a graft has nothing to write"):
        esper.wrap(model, GrowthConfig(layers=["0"]), example=torch.zeros(2, 6))
    assert layout(model) == before


def test_a_forward_that_does_not_read_modules_is_not_mistaken_for_one():
    class Innocent(nn.Module):
        """Its forward has no self._modules but in this sentence."""

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            """Does not walk self._modules."""
            return self.fc(x)

    assert wrapped(Innocent(), ["", "fc"])(torch.zeros(1, 6)).shape == (1, 4)


# Fast paths


@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_a_graft_in_a_transformer_layer_acts_in_eval_mode_too(name):
    """nn.TransformerEncoderLayer reads the weights of linear1 and linear2 on its fast path."""
    torch.manual_seed(0)
    model = wrapped(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), [name])
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        model.eval()
        before = model(x)
        grow(place_of(model, name), 1, hidden=3)
        in_eval = model(x)
        in_training = model.train()(x)
    assert (in_eval - before).abs().max() > 1e-3
    torch.testing.assert_close(in_eval, in_training)
