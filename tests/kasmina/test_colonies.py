"""Colonies of every kind: identity until they count, learning, removal, containment, copies."""

import copy
import functools
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import esper
import esper.kasmina.grafts.colony as colony_module
import esper.kasmina.grafts.group as group_module
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.guard import Exit
from esper.kasmina.host.anchoring import anchor_of, is_espers, places
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.places.lifecycle import is_finite
from esper.kasmina.places.passes import Passes
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import step_slots
from tests.few import few
from tests.kasmina.colony_hosts import COLONIES, NETS, GatedBlock
from tests.kasmina.growing import grow, remove
from tests.kasmina.test_zoo import build, differing
from tests.kasmina.zoo import Host, call

ALWAYS = [
    ("cnn", "stages.*.body", "widen"),
    ("gpt", "*", "widen"),
    ("gpt", "blocks.*", "bottleneck_mlp"),
    ("llama", "model.layers.*.mlp", "widen"),
    ("llama", "model.layers.*", "bottleneck_mlp"),
]
some = pytest.mark.parametrize(("name", "layer_id", "blueprint"), few(COLONIES, ALWAYS))
MODES = pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
IN_BOTH_MODES = pytest.mark.parametrize(
    ("name", "layer_id", "blueprint", "is_training"),
    few(
        [(*colony, is_training) for colony in COLONIES for is_training in (True, False)],
        [(*colony, is_training) for colony in ALWAYS for is_training in (True, False)]
        + [(*colony, True) for colony in {name: (name, *rest) for name, *rest in COLONIES}.values()],
    ),
)
SOME_WIDENED = pytest.mark.parametrize(
    ("name", "layer_id"),
    few([(a, b) for a, b, kind in COLONIES if kind == "widen"], [("cnn", "stages.*.body"), ("gpt", "*")]),
)


@functools.cache
def wrapped_once(name: str) -> tuple[nn.Module, Tensor]:
    """A model that nobody may change, and the random state behind it."""
    host = NETS[name].host
    model = build(host)
    torch.manual_seed(1)
    return esper.wrap(model, example=host.example()), torch.get_rng_state()


def wrapped(name: str) -> nn.Module:
    model, random_state = wrapped_once(name)
    torch.set_rng_state(random_state)
    made = copy.deepcopy(model)
    anchor_of(made).example = anchor_of(model).example  # which copies leave out, and exports are compared on
    return made


def grown(
    name: str, layer_id: str, blueprint: str, until: State = State.GRAFTING, **how: Any
) -> tuple[nn.Module, Place]:
    model = wrapped(name)
    place = place_named(model, layer_id)
    grow(place, "all", until, blueprint=blueprint, **how)
    return model, place


def passed(host: Host, model: nn.Module, *, is_training: bool = True, autocast: bool = False) -> list[Tensor]:
    """All that a pass forward and backward shows and leaves behind, the global random state too."""
    torch.manual_seed(2)
    example = host.example()
    model.train(is_training).zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = host.output(call(model, example))
        loss = output.float().square().mean()
    loss.backward()
    seen = [output.detach(), torch.get_rng_state()]
    seen += [tensor.clone() for name, tensor in model.named_buffers() if not is_espers(name)]
    return seen + [p.grad for name, p in model.named_parameters() if p.grad is not None and not is_espers(name)]


@pytest.mark.parametrize("name", NETS)
def test_colonies_are_found_where_a_model_repeats_itself(name):
    found = {place.layer_id: place.site.pieces for place in places(wrapped(name)) if place.kind == "colony"}
    roles = {colony: {piece.role for piece in pieces} - {"copy"} for colony, pieces in found.items()}
    assert roles == NETS[name].colonies


@IN_BOTH_MODES
def test_a_newborn_changes_no_bit(name, layer_id, blueprint, is_training):
    """At full alpha: not of outputs, statistics, random streams or gradients. A path beside an image or a signal gives
    a convolution its gradient with other strides, so that it is rounded otherwise, as by a graft of one place."""
    host = NETS[name].host
    model, place = grown(name, layer_id, blueprint, scale=None)
    seen, expected = (passed(host, one, is_training=is_training) for one in (model, build(host)))
    if blueprint != "widen" and name in ("bottlenecks", "separable"):
        torch.testing.assert_close(seen, expected)
        without = 2 + len(list(build(host).buffers()))
        seen, expected = seen[:without], expected[:without]
    assert differing(seen, expected) == 0
    assert place.arena.slots.grad.abs().sum() > 0


@some
@MODES
def test_one_that_is_not_zero_is_seen(name, layer_id, blueprint, is_training):
    """Negative control."""
    host = NETS[name].host
    model, _ = grown(name, layer_id, blueprint)
    seen, bare = (passed(host, one, is_training=is_training) for one in (model, build(host)))
    assert not torch.equal(seen[0], bare[0])
    assert torch.equal(seen[1], bare[1])  # of the random stream not even this


@pytest.mark.parametrize(
    ("name", "layer_id"), [("gpt", "*"), ("cnn", "*"), ("encoder", "layers.*"), ("llama", "model.layers.*")]
)
def test_a_newborn_changes_no_bit_of_half_precision(name, layer_id):
    host, blueprint = NETS[name].host, "bottleneck_mlp" if name == "llama" else "widen"
    bare = passed(host, build(host), autocast=True)
    assert differing(passed(host, grown(name, layer_id, blueprint, scale=None)[0], autocast=True), bare) == 0
    assert differing(passed(host, grown(name, layer_id, blueprint)[0], autocast=True), bare)


@some
def test_all_of_it_learns_within_ten_steps(name, layer_id, blueprint):
    """But for rows of tokens that no sample has."""
    host = NETS[name].host
    model, place = grown(name, layer_id, blueprint, scale=None)
    optimizer = torch.optim.SGD([place.arena.slots], lr=0.3)
    has_learnt = torch.zeros_like(place.arena.slots, dtype=torch.bool)
    torch.manual_seed(3)
    for _ in range(10):
        optimizer.zero_grad()
        host.output(call(model.train(), host.example())).square().mean().backward()
        has_learnt |= place.arena.slots.grad != 0
        optimizer.step()
    (graft,) = place.arena.live
    silent = graft.num_parameters - int(has_learnt.sum())
    dead = sum(piece.role == "embedding" for piece in graft.pieces) * 4 * graft.num_parameters // 100
    assert silent <= dead, f"{silent} of {graft.num_parameters}"


def test_random_channels_take_part_and_never_learn():
    model, place = grown("gpt", "*", "random_channels", scale=None)
    seen, bare = (passed(NETS["gpt"].host, one) for one in (model, build(NETS["gpt"].host)))
    assert not torch.equal(seen[0], bare[0])
    assert place.arena.slots.grad is None
    before = place.arena.slots.detach().clone()
    step_slots([(place, torch.ones_like(before))], lr=0.1, weight_decay=0.1)
    assert torch.equal(place.arena.slots, before)


@some
def test_once_removed_it_leaves_no_trace(name, layer_id, blueprint):
    host = NETS[name].host
    model, place = grown(name, layer_id, blueprint)
    passed(host, model)
    for name_, buffer in build(host).named_buffers():
        model.get_buffer(name_).copy_(buffer)
    remove(place)
    assert place.arena.slots.numel() == 0
    assert differing(passed(host, model), passed(host, build(host))) == 0
    assert set(esper.unwrap(model).state_dict()) == set(build(host).state_dict())


@some
def test_it_is_not_unwrapped_while_it_is_grown(name, layer_id, blueprint):
    model, _ = grown(name, layer_id, blueprint)
    with pytest.raises(esper.ConfigError, match="has grown at"):
        esper.unwrap(model)


@some
@pytest.mark.parametrize("until", [State.FINE_TUNING, State.FOSSILIZED], ids=lambda state: state.name)
def test_it_is_copied_saved_and_loaded(name, layer_id, blueprint, until):
    """Running statistics of new channels too."""
    host = NETS[name].host
    model, _ = grown(name, layer_id, blueprint, until)
    passed(host, model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = wrapped(name)
    loaded.load_state_dict(model.state_dict())
    expected = passed(host, model, is_training=False)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), loaded):
        assert differing(passed(host, other, is_training=False), expected) == 0


def test_without_the_statistics_of_new_channels_a_copy_would_compute_something_else():
    """Negative control."""
    host = NETS["cnn"].host
    model, place = grown("cnn", "*", "widen")
    passed(host, model)
    expected = passed(host, model, is_training=False)
    for statistics in place.arena.statistics.values():
        statistics.reset_running_stats()
    assert differing(passed(host, model, is_training=False), expected)


def spoilt(name: str, layer_id: str, blueprint: str) -> Iterator[tuple[nn.Module, Place]]:
    """With a weight that is not finite, in each of its pieces in turn."""
    whole, _ = grown(name, layer_id, blueprint)
    for index in range(len(place_named(whole, layer_id).site.pieces)):
        model = copy.deepcopy(whole)
        place = place_named(model, layer_id)
        (graft,) = place.arena.live
        sizes = [graft.blueprint.num_parameters(part) for part in graft.parts]
        if index < len(sizes) and sizes[index]:
            with torch.no_grad():
                place.arena.params_of(graft).split(sizes)[index][0] = math.nan
            yield model, place


@some
def test_a_weight_that_is_not_finite_silences_its_colony_there(name, layer_id, blueprint):
    """Whichever piece has it: the host stays finite, and the fault is noted."""
    host = NETS[name].host
    for model, place in spoilt(name, layer_id, blueprint):
        seen = passed(host, model)
        assert all(torch.isfinite(tensor).all() for tensor in seen if tensor.is_floating_point())
        assert torch.isfinite(place.arena.slots.grad).all()
        assert place.state.fault.any()
        assert not is_finite(place, 1)


def test_without_the_selection_the_output_is_not_finite(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(group_module, "select_G", lambda keep, values, otherwise=0.0: values)
    host = NETS["gpt"].host
    assert not all(torch.isfinite(passed(host, model)[0]).all() for model, _ in spoilt("gpt", "*", "widen"))


class Spoiling(torch.autograd.Function):
    """Identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.full_like(grads[0], math.nan)


class Through:
    """In place of the guard's entry: nothing is dropped."""

    @staticmethod
    def apply(x: Tensor, params: Tensor, mark: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return x.unsqueeze(0), params, mark


def spoil_gradients(monkeypatch, place: Place, index: int) -> None:
    """What one piece computes gets a gradient that is not finite."""
    real, chosen = colony_module.widened, place.site.pieces[index]

    def widened(piece: Any, *args: Any) -> Any:
        results = real(piece, *args)
        is_chosen = (piece.module, piece.role) == (chosen.module, chosen.role)
        return tuple(Spoiling.apply(one) if is_chosen and one is not None else one for one in results)

    monkeypatch.setattr(colony_module, "widened", widened)


@SOME_WIDENED
def test_a_gradient_that_is_not_finite_is_dropped(name, layer_id, monkeypatch):
    """Whichever piece it comes to."""
    host = NETS[name].host
    whole, at = grown(name, layer_id, "widen")
    for index, piece in enumerate(at.site.pieces):
        if piece.role in ("beside", "copy", "table"):
            continue
        with monkeypatch.context() as patch:
            model = copy.deepcopy(whole)
            place = place_named(model, layer_id)
            spoil_gradients(patch, place, index)
            seen = passed(host, model)
        assert all(torch.isfinite(tensor).all() for tensor in seen if tensor.is_floating_point()), piece
        assert torch.isfinite(place.arena.slots.grad).all(), piece
        assert place.state.fault.any(), piece


@pytest.mark.parametrize("until", [State.STABILIZATION, State.FOSSILIZED])
def test_it_is_found_where_nothing_of_the_colony_learns(until, monkeypatch):
    model, place = grown("gpt", "*", "widen", until)
    spoil_gradients(monkeypatch, place, [piece.module for piece in place.site.pieces].index("head"))
    assert all(torch.isfinite(one).all() for one in passed(NETS["gpt"].host, model) if one.is_floating_point())
    assert place.state.fault.any()


def test_without_the_entry_it_reaches_the_host(monkeypatch):
    """Negative control."""
    model, place = grown("gpt", "*", "widen")
    monkeypatch.setattr(colony_module, "Entry", Through)
    spoil_gradients(monkeypatch, place, [piece.module for piece in place.site.pieces].index("head"))
    assert not all(torch.isfinite(one).all() for one in passed(NETS["gpt"].host, model) if one.is_floating_point())


@some
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_of_the_host_that_is_not_finite_blames_nobody(name, layer_id, blueprint, value):
    """As of a gradient scaler that scales too much. The host sees it, and the slot is left as it is."""
    model, place = grown(name, layer_id, blueprint)
    spoilt_by_host(NETS[name].host, model, value)
    assert not place.state.fault.any()
    grads = [one.grad for name, one in model.named_parameters() if one.grad is not None]
    assert not all(torch.isfinite(one).all() for one in grads if one is not place.arena.slots.grad)
    assert not torch.isfinite(place.arena.slots.grad).all()


def test_what_new_channels_hand_on_of_it_would_be_blamed_on_them(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(Exit, "backward", staticmethod(lambda ctx, grad: (grad, torch.zeros(3, 1), None)))
    model, place = grown("gpt", "*", "widen")
    spoilt_by_host(NETS["gpt"].host, model, math.nan)
    assert place.state.fault.any()


def spoilt_by_host(host: Host, model: nn.Module, value: float) -> None:
    torch.manual_seed(2)
    (host.output(call(model.train(), host.example())) * torch.tensor(value)).sum().backward()


class Checkpointed(nn.Module):
    """Runs blocks once more in the backward pass."""

    mode: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList([GatedBlock(8, 12) for _ in range(2)])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x) if self.mode is None else checkpoint(block, x, use_reentrant=self.mode)
        return self.head(x)


def checkpointed(mode: bool | None, layer_id: str, until: State, blueprint: str) -> list[Tensor]:
    torch.manual_seed(0)
    model, x = Checkpointed(), torch.arange(12).remainder(11).view(2, 6)
    place = place_named(esper.wrap(model, example=x), layer_id)
    model.mode = mode
    grow(place, "all", until, blueprint=blueprint)
    torch.manual_seed(1)
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("until", [State.GRAFTING, State.FOSSILIZED], ids=lambda state: state.name)
@pytest.mark.parametrize(
    ("mode", "layer_id", "blueprint"),
    [(False, "*", "widen"), (False, "blocks.*", "widen"), (True, "blocks.*", "widen")]
    + [(mode, "blocks.*", "bottleneck_mlp") for mode in (False, True)],
)
def test_a_part_that_is_made_again_in_the_backward_pass_gets_the_same_gradients(mode, layer_id, blueprint, until):
    plainly = checkpointed(None, layer_id, until, blueprint)
    assert differing(checkpointed(mode, layer_id, until, blueprint), plainly) == 0


@pytest.mark.parametrize("until", [State.GRAFTING, State.FOSSILIZED], ids=lambda state: state.name)
def test_new_channels_of_a_stream_do_not_pass_a_part_that_hides_their_gradients(until, monkeypatch):
    """The negative control shows why: those of the host would be others."""
    with pytest.raises(esper.ConfigError, match=r"use_reentrant=True, where their gradients get lost"):
        checkpointed(True, "*", until, "widen")
    monkeypatch.setattr(Passes, "refuse_lost_gradients", lambda *_: None)
    assert differing(checkpointed(True, "*", until, "widen"), checkpointed(None, "*", until, "widen"))
