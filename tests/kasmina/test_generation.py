"""Decoding with a key-value cache: grafts that mix tokens keep nothing between calls."""

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import esper
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import place_named
from tests.few import few
from tests.kasmina.growing import grow
from tests.kasmina.test_zoo import build, germinate
from tests.kasmina.zoo import REAL, ids

PLACE = {
    "gpt2": "transformer.h.0.mlp.c_proj",
    "llama": "model.layers.0.mlp.down_proj",
    "t5": "decoder.block.0.layer.2.DenseReluDense.wo",
}
decoding = pytest.mark.parametrize("name", few(PLACE, ["llama"]))


def host(name: str, *, use_cache: bool = True) -> nn.Module:
    model = build(REAL[name])
    for module in model.modules():  # the decoder of a T5 has a configuration of its own
        if hasattr(module, "config") and not use_cache:
            module.config.use_cache = False
    return model.eval()


def wrapped(name: str, *, use_cache: bool = True, **config: Any) -> nn.Module:
    torch.manual_seed(1)
    return esper.wrap(host(name, use_cache=use_cache), esper.GrowthConfig(**config), REAL[name].example())


def continued(model: nn.Module, *, use_cache: bool) -> Tensor:
    torch.manual_seed(2)
    return model.generate(ids(8, 5), max_new_tokens=10, do_sample=False, use_cache=use_cache)


@decoding
def test_a_grown_model_goes_on_alike_with_and_without_a_cache(name):
    """With what is offered grown at all of its places."""
    model = wrapped(name)
    germinate(model, State.FOSSILIZED)
    with_cache = continued(model, use_cache=True)
    assert torch.equal(with_cache, continued(model, use_cache=False))
    assert not torch.equal(with_cache, continued(host(name), use_cache=True))


@pytest.mark.parametrize("blueprint", ["sliding_conv", "mini_attention"])
@pytest.mark.parametrize(("name", "with_example"), [*((name, True) for name in PLACE), ("llama", False), ("t5", False)])
def test_what_mixes_tokens_is_not_offered_where_a_cache_is_used(name, blueprint, with_example):
    example = REAL[name].example() if with_example else None
    model = esper.wrap(host(name), esper.GrowthConfig(layers=[PLACE[name]]), example)
    with pytest.raises(esper.ConfigError, match=f"{blueprint!r} cannot grow"):
        grow(place_named(model, PLACE[name]), "all", blueprint=blueprint)


@pytest.mark.parametrize("blueprints", [("sliding_conv",), ("mini_attention", "sliding_conv")])
def test_where_nothing_else_may_grow_the_model_is_refused(blueprints):
    with pytest.raises(esper.ConfigError, match=r"all of blueprints mix tokens.*use_cache = False before"):
        wrapped("llama", blueprints=blueprints)
    assert list(places(wrapped("llama", use_cache=False, blueprints=blueprints)))


def encoder_decoder() -> nn.Module:
    sizes = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(**sizes, intermediate_size=24, max_position_embeddings=32)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    return transformers.EncoderDecoderModel(both).eval()


@pytest.mark.parametrize(
    ("make", "layer_id", "inputs"),
    [
        (lambda: host("llama"), "model.layers.0", ["input_ids"]),
        (lambda: host("t5"), "decoder.block.0", ["input_ids", "decoder_input_ids"]),
        (lambda: Wrapper(host("t5")), "model.decoder.block.0", ["input_ids", "decoder_input_ids"]),
        (encoder_decoder, "decoder.bert.encoder.layer.0", ["input_ids", "decoder_input_ids"]),
    ],
)
def test_the_refusal_says_what_offers_them(make, layer_id, inputs):
    """Some models decode by a configuration of a part."""
    model, example = make(), dict.fromkeys(inputs, ids(8, 5))
    config = esper.GrowthConfig(layers=[layer_id], blueprints=("sliding_conv",))
    with pytest.raises(esper.ConfigError) as refusal:
        esper.wrap(model, config, example)
    remedy = re.search(r"Set (model.* = False) before esper.wrap", str(refusal.value))
    exec(remedy[1], {"model": model})
    assert list(places(esper.wrap(model, config, example)))


@decoding
@pytest.mark.parametrize("state", [State.GRAFTING, State.FOSSILIZED])
def test_a_model_that_was_told_to_use_none_refuses_one_once_a_mixing_graft_has_grown(name, state):
    model = wrapped(name, use_cache=False)
    before = continued(model, use_cache=True)
    assert torch.equal(before, continued(model, use_cache=False))
    grow(place_named(model, PLACE[name]), "all", state, blueprint="sliding_conv", scale=1.0)
    after = continued(model, use_cache=False)
    assert not torch.equal(after, before)
    with pytest.raises(esper.ConfigError, match=r"has grown a sliding_conv.*Generate with use_cache=False"):
        continued(model, use_cache=True)


class Wrapper(nn.Module):
    """Generates by the model within, as adapters do, so that it is not called itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.generate = model, model.generate

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def test_a_block_notices_a_cache_that_the_wrapped_model_is_not_handed():
    torch.manual_seed(1)
    model = esper.wrap(Wrapper(host("llama", use_cache=False)), example=REAL["llama"].example())
    grow(place_named(model, "model." + PLACE["llama"]), "all", State.FOSSILIZED, blueprint="sliding_conv")
    with pytest.raises(esper.ConfigError, match=r"Generate with use_cache=False"):
        continued(model, use_cache=True)


def test_from_a_cache_it_would_compute_something_else():
    """The control: within the model, around places where a cache is refused."""
    model = wrapped("llama", use_cache=False, layers=[PLACE["llama"]])
    grow(place_named(model, PLACE["llama"]), "all", State.GRAFTING, blueprint="sliding_conv", scale=1.0)
    x = ids(3, 6)
    with torch.no_grad():
        whole = model.model(input_ids=x).last_hidden_state
        first = model.model(input_ids=x[:, :4], use_cache=True)
        rest = model.model(input_ids=x[:, 4:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(first.last_hidden_state, whole[:, :4])
    assert not torch.allclose(rest.last_hidden_state, whole[:, 4:], atol=1e-2)


class Decoder(nn.Module):
    """One's own model with a cache, which is only seen when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x: Tensor, past_key_values: Any = None) -> dict[str, Any]:
        h = self.embed(x)
        return {"logits": self.mlp(h), "past_key_values": (h,)}


def test_a_cache_is_seen_in_what_a_model_gives_back():
    model = esper.wrap(Decoder(), esper.GrowthConfig(colonies=[]), ids(3, 6))
    assert {place.ports.layout for place in places(model)} == {"features"}
    assert {place.site.uncached for place in places(model)} == {"tokens"}


def test_where_no_cache_is_used_tokens_may_be_mixed():
    torch.manual_seed(1)
    model = esper.wrap(build(REAL["bert"]), example=REAL["bert"].example())
    assert place_named(model, "bert.encoder.layer.0").ports.layout == "tokens"


class Continued(nn.Module):
    """Takes a cache by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, past_key_values: Any = None) -> Tensor:
        return self.linear(x)


def test_until_something_grows_a_model_with_a_cache_compiles_whole():
    torch._dynamo.reset()
    model, x = esper.wrap(Continued(), example=torch.randn(2, 4)), torch.randn(2, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x=x, past_key_values=(x,)), model(x))
