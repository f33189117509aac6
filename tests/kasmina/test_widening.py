"""Colonies that have grown leave as plain layers of the new widths, and only those that can are offered."""

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import esper
import esper.kasmina.host.widening as widening
from esper.blueprints.widen import Widen
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import place_named
from tests.few import few
from tests.kasmina.colony_hosts import NETS, Gated
from tests.kasmina.growing import grow, release
from tests.kasmina.test_colonies import SOME_WIDENED, passed, some, wrapped
from tests.kasmina.zoo import VOCABULARY, Host, call, ids
from tests.tree_digest import tree_digest


def fossilized(name: str, layer_id: str, blueprint: str, *, times: int = 1, percent: int = 50) -> nn.Module:
    """With grafts of single layers too, that lie in layers which become wider."""
    model = wrapped(name)
    for _ in range(times):
        place = place_named(model, layer_id)
        settings = {"percent": percent} if blueprint == "widen" else {}
        grow(place, "all", State.FOSSILIZED, blueprint=blueprint, **settings)
        release(place)
    passed(NETS[name].host, model)  # statistics of new channels
    return model


def outputs(host: Host, *models: nn.Module) -> list[Tensor]:
    torch.manual_seed(4)
    example = host.example()
    with torch.no_grad():
        return [host.output(call(model.eval(), example)) for model in models]


@some
def test_a_fossil_is_exported(name, layer_id, blueprint):
    """Same outputs, nothing of Esper within, copied and pickled, and read by torch.export."""
    host = NETS[name].host
    model = fossilized(name, layer_id, blueprint, times=2)
    plain = esper.export(model)
    file = io.BytesIO()
    torch.save(plain, file)
    assert b"esper.kasmina" not in file.getvalue()
    file.seek(0)
    expected, actual, *copies = outputs(
        host, model, plain, copy.deepcopy(plain), torch.load(file, weights_only=False), wrapped(name)
    )
    torch.testing.assert_close(actual, expected)
    assert torch.equal(copies[0], actual)
    assert torch.equal(copies[1], actual)
    assert not torch.allclose(copies[2], actual)  # the control: it has grown


@some
def test_all_weights_of_an_export_train_on(name, layer_id, blueprint):
    host = NETS[name].host
    plain = esper.export(fossilized(name, layer_id, blueprint)).train()
    before = [parameter.detach().clone() for parameter in plain.parameters()]
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    torch.manual_seed(5)
    host.output(call(plain, host.example())).square().mean().backward()
    optimizer.step()
    after = plain.named_parameters()
    assert [name for (name, now), was in zip(after, before, strict=True) if torch.equal(now, was)] == []


@SOME_WIDENED
def test_an_export_tells_its_widths(name, layer_id):
    model = wrapped(name)
    narrow = dict(esper.export(model).named_modules())
    grow(place_named(model, layer_id), "all", State.FOSSILIZED, blueprint="widen", percent=50)
    wide = dict(esper.export(model).named_modules())
    for piece in place_named(model, layer_id).site.pieces:
        if piece.role == "table" or not Widen().meets(piece):
            continue
        one, other = narrow[piece.module], wide[piece.module]
        if hasattr(other, "host"):
            assert str(other.host) == str(one)
            continue
        assert type(other) is type(one)
        shapes = {name: tuple(tensor.shape) for name, tensor in other.state_dict().items()}
        again = type(other)(**arguments(other))
        assert {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()} == shapes


def arguments(module: Any) -> dict[str, Any]:
    """Those with which a module of its widths would be made."""
    match module:
        case nn.Linear():
            return {
                "in_features": module.in_features,
                "out_features": module.out_features,
                "bias": module.bias is not None,
            }
        case nn.Embedding():
            return {"num_embeddings": module.num_embeddings, "embedding_dim": module.embedding_dim}
        case nn.Conv1d() | nn.Conv2d():
            names = ("in_channels", "out_channels", "kernel_size", "groups")
            return {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
        case nn.GroupNorm():
            return {"num_channels": module.num_channels, "num_groups": module.num_groups}
        case _ if type(module).__name__ == "Conv1D":
            return {"nf": module.nf, "nx": module.nx}
    return {"num_features": module.num_features}


@pytest.mark.parametrize("name", few(["cnn", "gpt", "gated", "separable", "encoder", "vit"], ["cnn", "gpt"]))
def test_grafts_of_single_places_read_and_write_the_hosts_channels_of_wider_layers(name):
    """With fossils at all places and several colonies."""
    host = NETS[name].host
    model = wrapped(name)
    for number, place in enumerate(places(model), start=1):
        grow(place, "all", State.FOSSILIZED, lifecycle=number, scale=0.1)
    passed(host, model)
    expected, actual = outputs(host, model, esper.export(model))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("percent", [34, 50, 100])
def test_a_group_norm_gets_more_groups_where_they_are_as_large_as_its_own(percent):
    """6 channels in 3 groups: of 2 new ones, or 6; 3 would be groups of another size."""
    norm = esper.export(fossilized("separable", "*.*.body", "widen", percent=percent)).get_submodule("2.0.body.2")
    if percent == 50:
        assert (norm.host.num_groups, norm.new_1.num_groups, norm.new_1.num_channels) == (3, 1, 3)
    else:
        new = {34: 2, 100: 6}[percent]
        assert (type(norm), norm.num_groups, norm.num_channels) == (nn.GroupNorm, 3 + new // 2, 6 + new)


def test_tied_weights_part_where_both_ends_have_grown_and_stay_tied_where_nothing_has():
    both = esper.export(fossilized("gated", "*", "widen"))
    assert both.head.weight is not both.tokens.weight
    assert both.head.weight.shape == both.tokens.weight.shape == (VOCABULARY, 12)
    neither = esper.export(fossilized("gated", "blocks.*", "widen"))
    assert neither.head.weight is neither.tokens.weight


def test_what_is_frozen_stays_so_and_of_its_dtype():
    model, x = Gated().bfloat16(), ids(3, 6)
    model.blocks.requires_grad_(False)
    place = place_named(esper.wrap(model, example=x), "*")
    grow(place, "all", State.FOSSILIZED, blueprint="widen")
    plain = esper.export(model)
    frozen = {name for name, parameter in plain.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in plain.named_parameters() if name.startswith("blocks.")}
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


def test_an_export_is_read_by_torch_export():
    host = NETS["gpt"].host
    plain = esper.export(fossilized("gpt", "*", "widen", times=2)).eval()
    x = host.example()
    torch.testing.assert_close(torch.export.export(plain, (x,)).module()(x), plain(x))


def test_in_training_an_export_computes_what_the_wrapped_model_does():
    """Batch norms normalise new channels by the batch, and keep statistics of them."""
    host = NETS["cnn"].host
    model = fossilized("cnn", "*", "widen")
    plain = esper.export(model)
    torch.manual_seed(6)
    x = host.example()
    torch.testing.assert_close(plain.train()(x), model.train()(x))
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))


def test_an_export_that_computes_something_else_is_refused(monkeypatch):
    """Negative control of the comparison: new columns in front of the host's."""
    model = fossilized("gpt", "*", "widen")
    real = widening._IN_PLACE["linear"]

    def swapped(module: Any, parts: Any) -> None:
        real(module, parts)
        with torch.no_grad():
            module.weight.copy_(module.weight.roll(1, dims=1))

    monkeypatch.setitem(widening._IN_PLACE, "linear", swapped)
    with pytest.raises(esper.ConfigError, match="The export computes something else on the example"):
        esper.export(model)


def test_columns_of_several_positions_lie_with_their_positions(monkeypatch):
    """Negative control: new columns behind all of the host's."""
    model = fossilized("patches", "*", "widen")
    monkeypatch.setattr(widening, "_beside", lambda blocks, positions: torch.cat([*blocks], 1))
    with pytest.raises(esper.ConfigError, match="The export computes something else on the example"):
        esper.export(model)


class Stubborn(nn.Module):
    """Has its width written into its code."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.maximum(x, block(x)) if self.kind == "picks" else x + block(x)
            if self.kind == "asserts":
                assert x.shape[-1] == 4, "four features"
            elif self.kind == "divides":
                x = x / x.shape[-1]
            elif self.kind == "sorts":
                x = x.sort(-1).values
            elif self.kind == "joins":
                x = torch.cat([x, x], -1)[..., 4:]
            elif self.kind == "looks":
                assert type(x) is Tensor, "a plain tensor"
            elif self.kind == "names":
                x = torch.add(F.relu(input=x), other=x.swapaxes(axis0=0, axis1=1).permute(dims=(1, 0)))
                x = torch.flatten(input=torch.mul(other=x, input=x), start_dim=1)
                x = torch.cat(tensors=(x[:2], x[2:]))
        return self.head(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("asserts", "the model fails once its layers are wider (AssertionError: four features)"),
        ("divides", "once its layers are wider the model computes something else, by "),
        ("sorts", "its channels cannot become more, since they go into sort"),
        ("joins", "its channels cannot become more, since they go into cat"),
        ("picks", "its channels cannot become more, since they go into maximum"),
        ("looks", "the model fails while its channels are followed ("),
    ],
)
def test_what_could_not_be_exported_is_not_offered(kind, reason):
    torch.manual_seed(0)
    before = copy.deepcopy(model := Stubborn(kind))
    state = torch.get_rng_state()
    esper.wrap(model, example=torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    found = [place.layer_id for place in places(model) if place.kind == "colony"]
    assert found == ["blocks.*"]
    (name, told), *_ = model._esper.not_offered.items()
    assert name == "*"
    assert told.startswith(reason)
    assert tree_digest(dict(esper.host_state_dict(model))) == tree_digest(dict(before.state_dict()))


@pytest.mark.parametrize("kind", ["not at all", "names"])
def test_what_can_be_exported_is_offered(kind):
    """The control; also where the host's code names the arguments of torch's functions."""
    model = esper.wrap(Stubborn(kind), example=torch.randn(5, 3))
    assert [place.layer_id for place in places(model) if place.kind == "colony"] == ["blocks.*", "*"]
    assert dict(model._esper.not_offered) == {}


class LayerNorm(nn.Module):
    """Over axis 1, by the name of one over the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, None, self.eps).movedim(-1, 1)


def test_a_norm_that_only_has_the_name_of_one_is_not_taken_for_it():
    blocks = [nn.Sequential(nn.Conv1d(4, 4, 1), LayerNorm(4)) for _ in range(2)]
    host = nn.Sequential(OrderedDict(stem=nn.Conv1d(2, 4, 1), blocks=nn.Sequential(*blocks), head=nn.Conv1d(4, 3, 1)))
    model = esper.wrap(host, example=torch.randn(5, 2, 6))
    (colony,) = [place for place in places(model) if place.layer_id == "*"]
    assert [piece.module for piece in colony.site.pieces] == ["stem", "blocks.0.0"], "what norms see keeps its width"
    assert "'blocks.0.1' reads them at another axis" in model._esper.not_offered["blocks.0.0"]


def test_a_pattern_of_what_is_not_offered_is_refused_with_the_reason():
    host, config = NETS["gpt"].host, esper.GrowthConfig(colonies=["blocks.*.attention"])
    with pytest.raises(esper.ConfigError, match=r"matches no colony.*is not offered: its channels.*go into unflatten"):
        esper.wrap(host.build(), config, host.example())
