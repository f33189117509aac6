"""Hosts of every kind: identity until something grows, growth where it may, and a way back to plain torch."""

import copy
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import traced
from esper.kasmina.places.place import Place
from tests.few import few
from tests.kasmina.growing import grow, release, remove
from tests.kasmina.zoo import ZOO, Host, call

ALWAYS = ("separable_cnn", "attention", "tokens_first", "pyramid", "gru")
every = pytest.mark.parametrize("name", ZOO)
some = pytest.mark.parametrize("name", few(ZOO, ALWAYS))
STEPS = 4


def build(host: Host) -> nn.Module:
    torch.manual_seed(0)
    return host.build()


def seeded(host: Host, *, with_example: bool = True, **config) -> nn.Module:
    model = build(host)
    torch.manual_seed(1)
    return esper.wrap(model, esper.GrowthConfig(seeds_per_layer=3, **config), host.example() if with_example else None)


def germinate(model: nn.Module, until: State) -> None:
    for number, place in enumerate(places(model), start=1):
        grow(place, "all", until, lifecycle=number)


def history(host: Host, model: nn.Module, *, autocast: bool = False) -> list[Tensor]:
    """All that some training steps with clipping show and leave behind; evaluation too."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(2)
    seen = []
    for _ in range(STEPS):
        example = host.example()
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = host.output(call(model, example))
            loss = output.float().square().mean()
        loss.backward()
        parameters = [parameter for name, parameter in model.named_parameters() if "_esper" not in name]
        seen += [output.detach(), loss.detach()]
        seen += [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
        seen.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad()
        seen += [tensor.clone() for name, tensor in model.state_dict().items() if "_esper" not in name]
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            seen += [host.output(call(model, example)), torch.get_rng_state()]
    return seen


@cache
def bare_history(host: Host, *, autocast: bool = False) -> list[Tensor]:
    """The bare model's. Where a machine cannot run even that with autocast, the test is skipped with its error."""
    try:
        return history(host, build(host), autocast=autocast)
    except RuntimeError as error:  # torch's, for what a processor lacks: bfloat16 in an LSTM, for example
        if not autocast:
            raise
        pytest.skip(f"not even the bare model runs here: {error}")


class Lacking(nn.Linear):
    """Fails as oneDNN does where the processor lacks an instruction."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("could not create a primitive")


def test_what_the_bare_model_cannot_do_here_is_skipped_with_its_error():
    lacking = Host(lambda: Lacking(2, 2), lambda: torch.randn(3, 2))
    with pytest.raises(pytest.skip.Exception, match="not even the bare model runs here: could not create a primitive"):
        bare_history(lacking, autocast=True)


def test_nothing_else_is_skipped():
    """Neither a model that can, nor one that fails in float32, which every machine can."""
    able, lacking = (Host(lambda kind=kind: kind(2, 2), lambda: torch.randn(3, 2)) for kind in (nn.Linear, Lacking))
    assert bare_history(able, autocast=True)
    with pytest.raises(RuntimeError, match="could not create a primitive"):
        bare_history(lacking)


def differing(one: list[Tensor], other: list[Tensor]) -> int:
    assert len(one) == len(other)
    return sum(not torch.equal(*pair) for pair in zip(one, other, strict=True))


# Every host where least and where most is going on; and all of it where norms, attention or a packed kernel meet it.
WAITING = [
    (name, state, autocast)
    for name in ZOO
    for state in (State.DORMANT, State.GERMINATED, State.TRAINING)
    for autocast in (False, True)
    if name in ("residual_cnn", "encoder", "lstm")
    or (state, autocast) in ((State.DORMANT, False), (State.TRAINING, True))
]


@pytest.mark.parametrize(
    ("name", "state", "autocast"), WAITING, ids=lambda part: part.name if isinstance(part, State) else None
)
def test_a_seed_that_sleeps_or_waits_changes_no_bit(name, state, autocast):
    host = ZOO[name]
    expected = bare_history(host, autocast=autocast)
    model = seeded(host)
    if state is not State.DORMANT:
        germinate(model, state)
    assert differing(history(host, model, autocast=autocast), expected) == 0
    assert all(place.arena.slots.grad is None for place in places(model))


@some
def test_a_graft_is_seen(name):
    """Negative control of the identity, at every place by itself."""
    host = ZOO[name]
    expected = bare_history(host)
    for layer_id in [place.layer_id for place in places(seeded(host))]:
        model = seeded(host)
        place = next(place for place in places(model) if place.layer_id == layer_id)
        grow(place, "all", State.GRAFTING)
        assert differing(history(host, model), expected) > 0, layer_id


@every
def test_without_an_example_layers_and_chains_carry_seeds_too(name):
    host = ZOO[name]
    model = seeded(host, with_example=False)
    assert list(places(model))
    assert differing(history(host, model), bare_history(host)) == 0


@every
def test_a_traced_run_shows_what_an_example_would(name):
    """Rows, calls, thresholds, and the geometry that layers alone do not tell."""
    host = ZOO[name]
    model, measured = seeded(host, with_example=False), seeded(host)
    with traced(model) as trace:
        call(model, host.example())
    by_example = {place.layer_id: place.site for place in places(measured)}
    for place in places(model):
        if trace.calls[place.layer_id] and place.layer_id in by_example:
            other = by_example[place.layer_id]
            assert place.site.geometry.adapter == other.geometry.adapter
            assert place.site.form == other.form
            assert trace.rows[place.layer_id] >= 1
    assert trace.multiply_adds > 0


@every
def test_every_place_learns(name):
    """Each parameter of a graft at any place receives gradient once it is away from zero."""
    host = ZOO[name]
    model = seeded(host)
    germinate(model, State.GRAFTING)
    torch.manual_seed(3)
    host.output(call(model.train(), host.example())).float().square().mean().backward()
    for place in places(model):
        grad = place.arena.slots.grad
        assert grad is not None, place.layer_id
        assert torch.isfinite(grad).all(), place.layer_id
        assert grad.abs().sum() > 0, place.layer_id


@every
def test_a_removed_graft_leaves_no_trace(name):
    host = ZOO[name]
    model = seeded(host)
    germinate(model, State.GRAFTING)
    for place in places(model):
        remove(place)
    assert differing(history(host, model), bare_history(host)) == 0


@some
def test_the_grown_model_exports_to_plain_torch(name):
    """Same outputs in eval mode, and no class of Esper within."""
    host = ZOO[name]
    model = seeded(host)
    germinate(model, State.FOSSILIZED)
    plain = esper.export(model)
    torch.manual_seed(4)
    example = host.example()
    with torch.no_grad():
        expected, actual = host.output(call(model.eval(), example)), host.output(call(plain.eval(), example))
        bare = host.output(call(build(host).eval(), example))
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, bare)
    assert not [module for module in plain.modules() if "esper" in type(module).__module__]


def reversed_batch(host: Host, example: Any) -> Any:
    if isinstance(example, dict):
        return {key: value.flip(0) for key, value in example.items()}
    if isinstance(example, tuple):
        return tuple(value.flip(axis) for value, axis in zip(example, host.batch_axes, strict=True))
    return example.flip(host.batch_axes[0])


def grown_at_each(host: Host, *, with_example: bool, blueprint: str) -> dict[str, bool]:
    """Whether samples stay apart, by place: a batch in reverse gives the outputs in reverse."""
    torch.manual_seed(7)
    example, found = host.example(), {}
    every_layer = seeded(host, with_example=with_example, layers=["*"])
    chosen = seeded(host, with_example=with_example)
    for original in (every_layer, chosen):
        with traced(original):
            call(original.eval(), example)
        for layer_id in [place.layer_id for place in places(original)]:
            model = copy.deepcopy(original)
            place = next(place for place in places(model) if place.layer_id == layer_id)
            reads = "input" if place.ports.inputs else "chunk"
            recipe = make_blueprint(blueprint, {"reads": reads})
            if layer_id in found or recipe.misfit(place.ports_of(recipe)) is not None:
                continue
            grow(place, "all", State.GRAFTING, blueprint=blueprint, scale=1.0, reads=reads)
            with torch.no_grad():
                outputs = host.output(call(model, example))
                mirrored = host.output(call(model, reversed_batch(host, example)))
                assert not torch.equal(outputs, host.output(call(original, example))), layer_id
            found[layer_id] = torch.allclose(outputs.flip(0), mirrored, rtol=1e-4, atol=1e-5)
    return found


# Without an example the batch is told by the layers alone; what looks at several tokens could take them for samples.
APART = [
    *((name, True, "bottleneck_mlp") for name in ZOO),
    *((name, False, "bottleneck_mlp") for name in ("residual_cnn", "encoder", "attention", "tokens_first", "pyramid")),
    *((name, True, "sliding_conv") for name in ("encoder", "attention", "tokens_first", "gru", "mixer", "patches")),
    *((name, False, "sliding_conv") for name in ("tied_language_model", "attention", "tokens_first", "lstm")),
]


@pytest.mark.parametrize(
    ("name", "with_example", "blueprint"),
    few(APART, [*((name, True, "bottleneck_mlp") for name in ALWAYS), ("tokens_first", False, "sliding_conv")]),
)
def test_a_graft_keeps_the_samples_of_a_batch_apart(name, with_example, blueprint):
    apart = grown_at_each(ZOO[name], with_example=with_example, blueprint=blueprint)
    assert apart
    assert [layer_id for layer_id, is_apart in apart.items() if not is_apart] == []


@some
def test_a_placebo_mixes_the_samples_of_a_batch(name):
    """Negative control: it reads the sample before, or another token where nothing tells that the batch is second."""
    apart = grown_at_each(ZOO[name], with_example=True, blueprint="placebo")
    assert not all(apart.values())
    if set(ZOO[name].batch_axes) == {0}:
        same = {"encoder"} if name == "vision_transformer" else set()  # its head sees the class token, of all the same
        assert {layer_id for layer_id, is_apart in apart.items() if is_apart} == same


@pytest.mark.parametrize("with_example", [True, False], ids=["example", "layers"])
def test_where_the_batch_may_be_second_only_layers_that_say_so_carry_tokens(with_example):
    model = seeded(ZOO["tokens_first"], with_example=with_example, layers=["*"])
    tokens = {place.layer_id for place in places(model) if place.ports.layout == "tokens"}
    assert tokens == {"rnn", "encoder.self_attn"} | ({"encoder"} if with_example else set())


class Packed(nn.Module):
    """A recurrent layer on packed sequences, of which only the last state is a plain tensor."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), x.shape[1])
        last = self.rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[1]
        return self.head((last[0] if isinstance(last, tuple) else last)[-1])


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN, nn.LSTM])
def test_a_layer_on_packed_sequences_carries_no_seeds(kind):
    x = torch.randn(4, 6, 5)
    assert [place.layer_id for place in places(esper.wrap(Packed(kind), example=x))] == ["head"]
    with pytest.raises(esper.ConfigError, match=r"'rnn'.*Name other layers"):
        esper.wrap(Packed(kind), esper.GrowthConfig(layers=["rnn"]), x)


def flat_ids() -> nn.Module:
    """One id per sample: an embedding without tokens, which only a run shows."""
    torch.manual_seed(0)
    return esper.wrap(nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 3)), esper.GrowthConfig(layers=["0"]))


def test_an_embedding_of_one_id_per_sample_is_of_features_once_that_was_seen():
    model, x = flat_ids(), torch.arange(6)
    assert chunks(model, "0").ports.layout == "tokens"
    with traced(model):
        model(x)
    restored = flat_ids()
    restored.load_state_dict(model.state_dict())
    chunks(restored, "0").regrow(chunks(model, "0").topology())  # as a checkpoint does
    for other in (model, copy.deepcopy(model), restored):
        place = chunks(other, "0")
        assert place.ports.layout == "features"
        grow(place, "all", State.GRAFTING, reads="chunk")
        torch.testing.assert_close(other(x).flip(0), other(x.flip(0)))


@every
def test_it_can_be_copied_saved_and_loaded(name):
    """Grafts and all: by deepcopy, by pickle and by state dict."""
    host = ZOO[name]
    model = seeded(host)
    germinate(model, State.FINE_TUNING)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = seeded(host)
    loaded.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    example = host.example()
    expected = host.output(call(model.eval(), example))
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), loaded):
        assert torch.equal(host.output(call(other.eval(), example)), expected)


@every
def test_host_checkpoints_fit_both_ways(name):
    host = ZOO[name]
    bare, model = build(host), seeded(host)
    bare.load_state_dict(esper.host_state_dict(model))
    model.load_state_dict(bare.state_dict())
    assert type(esper.unwrap(model)) is type(bare)
    assert list(model.state_dict()) == list(bare.state_dict())


def chunks(model: nn.Module, layer_id: str) -> Place:
    return next(place for place in places(model) if place.layer_id == layer_id)


@pytest.mark.parametrize(
    ("name", "layer_id", "axis"),
    [
        ("residual_cnn", "stages.1.body.3", 1),
        ("separable_cnn", "4", 1),
        ("unet", "up", 1),
        ("encoder", "layers.0.linear1", -1),
        ("attention", "attend", -1),
        ("gru", "rnn", -1),
        ("tied_language_model", "tokens", -1),
    ],
)
def test_a_chunk_lies_on_the_channel_axis(name, layer_id, axis):
    """A graft of one seed changes its own channels and no others."""
    host = ZOO[name]
    model, outputs = seeded(host), []
    place = chunks(model, layer_id)
    module = model.get_submodule(layer_id)
    module.register_forward_hook(lambda _, args, result: outputs.append(result))
    torch.manual_seed(6)
    example = host.example()
    for _ in range(2):
        with torch.no_grad():
            call(model.train(False), example)
        grow(place, 1, State.GRAFTING, reads="chunk") if not place.is_growing else None
    first, second = (result[0] if isinstance(result, tuple) else result for result in (outputs[0], outputs[-1]))
    changed = (first != second).movedim(axis, 0).flatten(1).any(1)
    start, end = place.bounds[1:3]
    assert changed[start:end].all()
    assert not changed[:start].any()
    assert not changed[end:].any()


def test_rechunking_keeps_fossils_and_sums_and_versions_rise():
    model = esper.wrap(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), esper.GrowthConfig(layers={"0": 4}))
    place = chunks(model, "0")
    grow(place, 2, State.FOSSILIZED, reads="chunk")
    release(place, 2)
    x = torch.randn(32, 6)
    y, version = model.train()(x).detach(), place.state.version.max()
    before = place.report().seeds.chunk_variance
    place.rechunk(3)
    assert place.bounds == [0, 2, 5, 8]
    assert torch.equal(model.eval()(x), y)
    assert place.state.version.min() >= 1
    assert place.state.version.max() == version + 1
    after = place.report().seeds.chunk_variance
    assert sum(after[i] * n for i, n in enumerate((2, 3, 3))) == pytest.approx(sum(value * 2 for value in before))


@pytest.mark.parametrize("num_seeds", [1.5, 2.0, 0, -1, 9, "2", None])
def test_a_refused_rechunk_changes_nothing(num_seeds):
    model = esper.wrap(nn.Sequential(nn.Linear(6, 8)), esper.GrowthConfig(layers={"0": 4}))
    place = chunks(model, "0")
    before, bounds = {name: tensor.clone() for name, tensor in model.state_dict().items()}, list(place.bounds)
    with pytest.raises(esper.ConfigError, match=f"carry 1 to 8 seeds, not {num_seeds!r}"):
        place.rechunk(num_seeds)
    assert place.bounds == bounds
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    place.rechunk(2)


def test_rechunking_is_refused_while_a_seed_is_busy():
    model = esper.wrap(nn.Sequential(nn.Linear(6, 8)), esper.GrowthConfig(layers={"0": 4}))
    place = chunks(model, "0")
    grow(place, 1, State.GERMINATED)
    with pytest.raises(esper.TransitionError, match=r"1 \(GERMINATED\)"):
        place.rechunk(2)
    assert place.state.num_seeds == 4


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict, object, str]] = {
    "field": (
        ZOO["outputs"].build,
        {"output_fields": {"blocks.*": "logits"}},
        {"features": torch.randn(2, 6)},
        "no tensor 'logits'",
    ),
    "no_tensor": (lambda: nn.Sequential(nn.Linear(2, 2)), {"layers": ["0"]}, torch.randn(2), "shape"),
    "not_a_module": (lambda: torch.relu, {}, None, "takes the model to grow, an nn.Module"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_place_is_refused_with_the_remedy(name):
    make, config, example, message = REFUSED[name]
    with pytest.raises(esper.ConfigError, match=message):
        esper.wrap(make(), esper.GrowthConfig(**config), example)


def test_param_groups_spare_norms_biases_and_embeddings():
    model = seeded(ZOO["tied_language_model"])
    decayed, spared = esper.param_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("qkv", "project", "mlp.0", "mlp.3")]
    assert {names[id(p)] for p in decayed["params"]} == {"positions", *(f"{layer}.weight" for layer in layers)}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


class Summary(nn.Module):
    """Tokens first, as many of them as samples in a batch: nothing tells which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.blocks = nn.GRU(8, 8), nn.ModuleList([Mean()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.rnn(x)[0])


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).mean(0)


def test_where_batch_and_tokens_cannot_be_told_apart_no_graft_reads_across():
    model = esper.wrap(Summary(), example=torch.randn(4, 4, 8))
    assert "blocks.0" not in [place.layer_id for place in places(model)]


def test_a_layer_whose_output_holds_no_tensor_is_refused_once_that_was_seen():
    """A packed LSTM that was wrapped without an example."""
    model = esper.wrap(nn.LSTM(4, 6), esper.GrowthConfig(layers=[""]))
    packed = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])
    with pytest.raises(esper.ConfigError, match=r"gave no tensor.*Name other layers"), traced(model):
        model(packed)
