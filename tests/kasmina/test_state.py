"""Seed state, grafts and fossils through copies, dtypes and state dicts."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.seeds.seed_state import COLUMNS, SeedState
from tests.kasmina.growing import grow, mlp, place_of, release, remove, wrapped

X = torch.linspace(-1, 1, 5 * 6).view(5, 6)


def fresh() -> nn.Module:
    return wrapped(mlp(6, 11, 11, 4), {"": 1, "0:2": 1, "2": 4})


def full_of_life() -> nn.Module:
    """Live grafts in four states, one in isolation, fossils at a layer and at the model, moments, flags, an embargo."""
    model = fresh()
    layer = place_of(model, "2")
    for seed in range(2):
        grow(layer, seed, State.FOSSILIZED, hidden=3)
        release(layer, seed)
    for seed, state in enumerate((State.GRAFTING, State.EVALUATING, State.FINE_TUNING, State.TRAINING)):
        grow(layer, seed, state, hidden=2 + seed, reads="chunk", alpha=0.3 if seed == 0 else 1.0)
    grow(place_of(model, "0:2"), "all", State.STABILIZATION, hidden=2)
    grow(place_of(model, ""), "all", State.FOSSILIZED, hidden=2)
    layer.incubation.begin(layer.arena.grafts[int(layer.state.lifecycle_id[3])], "reconstruction", 0, 1e-3)
    model(X).sum().backward()
    layer.incubation.learn(int(layer.state.lifecycle_id[3]))
    layer.arena.exp_avg += 0.25
    layer.arena.updates += 3
    layer.state.fault[1] = 1
    layer.state.embargo_epochs[3] = 4
    return model


def same(one: nn.Module, other: nn.Module) -> bool:
    """Equal tensors of equal dtypes, equal topologies, equal classes."""
    mine, theirs = one.state_dict(), other.state_dict()
    tensors = all(torch.equal(mine[key], theirs[key]) and mine[key].dtype == theirs[key].dtype for key in mine)
    topologies = [[place.topology() for place in places(model)] for model in (one, other)]
    classes = [[type(module) for module in model.modules()] for model in (one, other)]
    return mine.keys() == theirs.keys() and tensors and topologies[0] == topologies[1] and classes[0] == classes[1]


def torch_saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "save": torch_saved}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_equal_and_independent(how):
    model = full_of_life()
    model(X).sum().backward()  # no view is cached that a copy would break
    before = model(X)
    twin = COPIES[how](model)
    assert same(model, twin)
    assert torch.equal(twin(X), before)
    remove(place_of(twin, "2"), 0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
        place_of(twin, "").arena.fossil_bytes(0).zero_()
    assert torch.equal(model(X), before)
    assert not same(model, twin)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_grows_and_trains_on(how):
    twin = COPIES[how](full_of_life())
    twin(X).square().sum().backward()
    assert place_of(twin, "2").arena.slots.grad.any()
    assert all(place.arena.slots.grad is None or place.arena.slots.grad.isfinite().all() for place in places(twin))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_reaches_weights_and_fossils_but_no_accumulator(dtype):
    model = full_of_life()
    expected = model(X)
    columns = [{name: getattr(place.state, name).clone() for name in COLUMNS} for place in places(model)]
    moments = [place.arena.exp_avg.clone() for place in places(model)]
    model.to(dtype)
    for place, before, moment in zip(places(model), columns, moments, strict=True):
        arena = place.arena
        assert arena.slots.dtype == dtype
        assert all(arena.fossil_bytes(index).dtype == dtype for index in range(len(arena.fossils)))
        assert arena.exp_avg.dtype == arena.exp_avg_sq.dtype == arena.updates.dtype == torch.float32
        assert torch.equal(arena.exp_avg, moment)
        assert {b.dtype for b in place.incubation.buffers() if b.is_floating_point()} == {torch.float32}
        for name, column in before.items():
            assert getattr(place.state, name).dtype == COLUMNS[name]
            assert torch.equal(getattr(place.state, name), column)
    output = model(X.to(dtype))
    assert output.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float64 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(output.to(torch.float32), expected, **tolerance)


def test_half_is_the_same_as_to():
    one, other = full_of_life().half(), full_of_life().to(torch.float16)
    assert same(one, other)


def test_a_module_that_does_not_keep_dtypes_would_lose_the_counters():
    """Negative control: half precision counts no further than 2048."""
    naive, state = nn.Module(), SeedState(2)
    naive.register_buffer("alpha", torch.zeros(2))
    assert naive.half().alpha.dtype == torch.float16
    assert state.half().alpha.dtype == torch.float32


def test_a_state_dict_regrows_the_architecture():
    model, new = full_of_life(), fresh()
    result = new.load_state_dict(model.state_dict(), strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert same(model, new)
    assert torch.equal(new(X), model(X))


def test_a_state_dict_on_disk_regrows_the_architecture_with_weights_only(tmp_path):
    model, new = full_of_life(), fresh()
    torch.save(model.state_dict(), tmp_path / "state.pt")
    new.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(model, new)


def test_a_state_dict_prunes_what_was_not_there():
    model, before = fresh(), fresh().state_dict()
    grow(place_of(model, "2"), 1, hidden=3)
    grow(place_of(model, ""), "all", State.FOSSILIZED, hidden=3)
    model.load_state_dict(before, strict=True)
    assert same(model, fresh())
    assert place_of(model, "2").arena.slots.numel() == 0


def test_loading_keeps_the_parameter_that_the_optimizer_holds():
    model = fresh()
    parameter = place_of(model, "2").arena.slots
    model.load_state_dict(full_of_life().state_dict())
    assert place_of(model, "2").arena.slots is parameter
    assert parameter.numel() > 0


def test_the_state_is_small():
    state = SeedState(1000)
    assert sum(buffer.numel() * buffer.element_size() for buffer in state.buffers()) < 100_000


def test_every_seed_is_born_dormant():
    state = SeedState(3)
    assert dict(state.named_buffers()).keys() == COLUMNS.keys()
    assert not any(buffer.any() for buffer in state.buffers())
