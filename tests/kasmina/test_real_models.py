"""Models of transformers as people wrap them: which places they have, and that these grow."""

from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import place_named
from tests.kasmina.growing import grow
from tests.kasmina.test_zoo import bare_history, build, differing, germinate, history, seeded
from tests.kasmina.zoo import REAL, call, ids

every = pytest.mark.parametrize("name", REAL)

BLOCKS = {
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "vit": ["vit.layers.0", "vit.layers.1"],
    "llama": ["model.layers.0", "model.layers.1"],
    "t5": [f"{end}.block.{index}" for end in ("encoder", "decoder") for index in (0, 1)],
    "mamba": ["backbone.layers.0", "backbone.layers.1"],
    "whisper": [f"model.{end}.layers.{index}" for end in ("encoder", "decoder") for index in (0, 1)],
}
LAYERS = {
    "gpt2": "transformer.h.1.mlp.c_fc",
    "bert": "bert.encoder.layer.1.intermediate.dense",
    "vit": "vit.layers.1.mlp.fc1",
    "llama": "model.layers.1.mlp.up_proj",
    "t5": "decoder.block.1.layer.2.DenseReluDense.wi",
    "mamba": "backbone.layers.1.mixer.in_proj",
    "whisper": "model.decoder.layers.1.fc1",
}


@every
def test_until_something_grows_no_bit_changes(name):
    host = REAL[name]
    assert differing(history(host, seeded(host)), bare_history(host)) == 0


@every
def test_blocks_and_the_layers_within_are_chosen_and_norms_are_not(name):
    found = {place.layer_id: place for place in places(seeded(REAL[name]))}
    assert {*BLOCKS[name], LAYERS[name]} <= found.keys()
    assert {found[block].kind for block in BLOCKS[name]} == {"block"}
    assert {(found[block].ports.inputs, found[block].ports.outputs) for block in BLOCKS[name]} == {(16, 16)}
    assert found[LAYERS[name]].kind == "layer"
    assert found[LAYERS[name]].ports.inputs == 16
    assert not [layer_id for layer_id in found if "norm" in layer_id or "ln_" in layer_id]


@every
@pytest.mark.parametrize("kind", ["layer", "block"])
def test_what_grows_there_is_computed_and_learns(name, kind):
    host, layer_id = REAL[name], LAYERS[name] if kind == "layer" else BLOCKS[name][0]
    model = seeded(host)
    grow(place_named(model, layer_id), "all", State.GRAFTING)
    torch.manual_seed(3)
    example = host.example()
    output, bare = host.output(call(model, example)), host.output(call(build(host), example))
    assert not torch.allclose(output, bare)
    output.square().mean().backward()
    assert place_named(model, layer_id).arena.slots.grad.abs().sum() > 0


@every
def test_every_place_learns(name):
    host = REAL[name]
    model = seeded(host)
    germinate(model, State.GRAFTING)
    torch.manual_seed(3)
    host.output(call(model.train(), host.example())).square().mean().backward()
    assert [place.layer_id for place in places(model) if not place.arena.slots.grad.abs().sum() > 0] == []


def wrapped(name: str, layers: Any, **config: Any) -> nn.Module:
    host = REAL[name]
    return esper.wrap(build(host), esper.GrowthConfig(layers=layers, **config), host.example())


@pytest.mark.parametrize(
    ("name", "pattern", "names"),
    [
        ("llama", "model.layers.?", BLOCKS["llama"]),
        ("t5", "*coder.block.?", BLOCKS["t5"]),
        ("mamba", "backbone.layers.*.mixer", ["backbone.layers.0.mixer", "backbone.layers.1.mixer"]),
        ("gpt2", "*.h.?.mlp.c_*", [f"transformer.h.{i}.mlp.{part}" for i in (0, 1) for part in ("c_fc", "c_proj")]),
        ("llama", "*input_layernorm", [f"{block}.input_layernorm" for block in BLOCKS["llama"]]),
        ("llama", "*self_attn", [f"{block}.self_attn" for block in BLOCKS["llama"]]),
    ],
)
def test_a_pattern_is_measured_as_the_names_it_stands_for(name, pattern, names):
    """Also of norms, mixers and attention that returns tuples and is called by keywords."""
    by_pattern, by_name = (wrapped(name, layers, colonies=[]) for layers in ([pattern], names))
    assert [place.layer_id for place in places(by_pattern)] == names
    assert [place.site for place in places(by_pattern)] == [place.site for place in places(by_name)]


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "mamba"])
@pytest.mark.parametrize("as_tuple", [False, True], ids=["fields", "tuple"])
def test_a_model_that_computes_its_loss_can_be_wrapped(name, as_tuple):
    """The loss comes first in its output, and is a scalar."""
    host = REAL[name]
    example = host.example() | {"labels": ids(3, 4 if name == "t5" else 6), "return_dict": not as_tuple}
    model = esper.wrap(build(host), example=example)
    assert "" not in [place.layer_id for place in places(model)]
    assert {*BLOCKS[name]} <= {place.layer_id for place in places(model)}
    loss = model(**example)[0]
    grow(place_named(model, BLOCKS[name][0]), "all", State.GRAFTING)
    assert not torch.equal(model(**example)[0], loss)


def test_a_place_around_a_loss_is_refused():
    llama = REAL["llama"]
    example = {"input_ids": ids(3, 6), "labels": ids(3, 6)}
    with pytest.raises(esper.ConfigError, match=r"computes its loss itself.*Name layers or blocks within"):
        esper.wrap(build(llama), esper.GrowthConfig(layers=[""]), example)


def test_around_the_whole_model_its_logits_are_written_whatever_else_it_returns():
    """As one tuple whose first item is no output to add to."""

    class Tuple(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return torch.arange(len(x)), x.mean(1), self.layer(x)

    torch.manual_seed(0)
    model, x = Tuple(), torch.randn(5, 4)
    esper.wrap(model, esper.GrowthConfig(layers=[""]), x)
    before = model(x)
    grow(place_named(model, ""), "all", State.GRAFTING)
    after = model(x)
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, True, False]


def test_the_input_that_is_read_does_not_depend_on_the_order_of_keywords():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
            return self.linear(hidden_states)

    torch.manual_seed(0)
    x, mask = torch.randn(2, 3, 4), torch.ones(2, 3)
    model = esper.wrap(Block(), esper.GrowthConfig(layers=[""]), {"attention_mask": mask, "hidden_states": x})
    place = place_named(model, "")
    assert place.ports.inputs == 4
    grow(place, "all", State.GRAFTING)
    expected = model(x, mask)
    assert torch.equal(model(attention_mask=mask, hidden_states=x), expected)
    assert torch.equal(model(hidden_states=x, attention_mask=mask), expected)


def test_a_pattern_of_blocks_without_an_example_asks_for_one():
    with pytest.raises(esper.ConfigError, match=r"\(LlamaDecoderLayer\) does not tell its widths\. Pass example=batch"):
        esper.wrap(build(REAL["llama"]), esper.GrowthConfig(layers=["model.layers.?"]))


def test_a_module_without_parameters_is_no_place():
    config = esper.GrowthConfig(layers=["model.rotary_emb"])
    with pytest.raises(esper.ConfigError, match=r"LlamaRotaryEmbedding\) has no parameters, so it is no place to grow"):
        esper.wrap(build(REAL["llama"]), config, REAL["llama"].example())
