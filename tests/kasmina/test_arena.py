"""Slots, fossils, and the batched computation of all grafts of a place against the loop over seeds."""

import pytest
import torch
from torch import nn

from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import SlotOptimizer, step_slots
from tests.kasmina.growing import grow, mlp, place_of, release, remove, transition_to, wrapped
from tests.kasmina.lone import blend_in, lone_place
from tests.kasmina.oracle import grown_by_loop

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),  # Triton's interpreter
]

SLOTS = "_esper.places.own.arena.slots"


def make_place(dtype=torch.float32) -> Place:
    """A place by itself; 11 channels and 4 seeds make chunks of 2, 3, 3 and 3."""
    return lone_place(dtype=dtype)


def mixed(place: Place, reads: str) -> Place:
    """Overlapping fossils of three shapes, uneven chunks, and live grafts in several states and two shapes."""
    for seed in range(4):
        grow(place, seed, State.FOSSILIZED, hidden=3, reads=reads)
        release(place, seed)
    grow(place, "all", State.FOSSILIZED, hidden=2, reads=reads)
    release(place)
    grow(place, 1, State.FOSSILIZED, hidden=3, reads="input")
    release(place, 1)
    grow(place, 0, State.GRAFTING, hidden=3, reads=reads, alpha=0.25)
    grow(place, 1, State.STABILIZATION, hidden=3, reads=reads)
    grow(place, 2, State.FINE_TUNING, hidden=3, reads=reads)
    grow(place, 3, State.FINE_TUNING, hidden=5, reads=reads)
    return place


def grown(place: Place, y, x):
    return place.arena.add_to(y, x, place.state, place.site.geometry, raises_faults=True)


def activations(place: Place, *leading, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(*leading, place.ports.inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(*leading, place.ports.outputs, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()


# The batch against the loop over seeds


@pytest.mark.parametrize("reads", ["chunk", "input"])
@pytest.mark.parametrize("leading", [(), (1,), (7,), (2, 3)], ids=str)
def test_the_batch_equals_the_loop_over_seeds(reads, leading):
    place = mixed(make_place(), reads)
    x, y = activations(place, *leading)
    output = grown(place, y, x)
    torch.testing.assert_close(output, grown_by_loop(place, y, x))
    assert (output - y).abs().max() > 0.1


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_its_gradients_equal_the_loops(reads):
    place = mixed(make_place(), reads)
    results = []
    for function in (grown, grown_by_loop):
        x, y = activations(place, 5, 3)
        leaves = (x, y, place.arena.slots)
        results.append(torch.autograd.grad(function(place, y, x).square().sum(), leaves))
    for batch, loop in zip(*results, strict=True):
        assert float((batch - loop).norm() / loop.norm()) < 1e-5


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_gradients_hold_in_float64(reads):
    torch.manual_seed(0)
    model = wrapped(nn.Linear(6, 11).double(), [""], seeds_per_layer=4)
    place = place_of(model, "")
    grow(place, 0, State.FOSSILIZED, hidden=2, reads=reads)
    release(place, 0)
    for seed, state in enumerate((State.GRAFTING, State.FINE_TUNING, State.FINE_TUNING, State.GRAFTING)):
        grow(place, seed, state, hidden=2, reads=reads, alpha=0.5)
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    weight, slots = model.weight.detach().requires_grad_(), place.arena.slots.detach().requires_grad_()

    def run(x, weight, slots):
        return torch.func.functional_call(model, {"weight": weight, SLOTS: slots}, (x,))

    assert torch.autograd.gradcheck(run, (x, weight, slots))


@pytest.mark.parametrize("state", [State.STABILIZATION, State.EVALUATING])
def test_a_frozen_graft_passes_gradient_to_the_host_but_gets_none(state):
    place = make_place()
    grow(place, 0, State.FINE_TUNING, hidden=3)
    grow(place, 1, state, hidden=3)
    x, y = activations(place, 5)
    grown(place, y, x)[:, 2:5].sum().backward()  # the frozen one's channels
    assert x.grad.norm() > 0
    assert not place.arena.slots.grad.any()
    grown(place, y, x)[:, :2].sum().backward()
    assert place.arena.slots.grad.view(2, -1).any(dim=1).tolist() == [True, False]


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_under_autocast_the_batch_equals_the_loop_in_bfloat16(reads, kernels):
    if kernels == "triton":
        pytest.skip("Triton's interpreter gives wrong numbers in bfloat16")
    place = mixed(make_place(), reads)
    x, y = activations(place, 64)
    y = y.detach().bfloat16().requires_grad_()
    reference = grown_by_loop(place, y.detach().float(), x.detach()).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = grown(place, y, x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert float((output.detach().float() - reference).norm() / reference.norm()) < 5e-3
    assert all(torch.isfinite(leaf.grad).all() for leaf in (x, y, place.arena.slots))


def in_whole_numbers(place: Place) -> Place:
    """Sums are then exact in any order: hidden units lie so far from 0 that gelu passes or stops them."""
    generator = torch.Generator().manual_seed(5)
    rows = [(graft, place.arena.params_of(graft)) for graft in place.arena.live]
    for index, group in enumerate(place.arena.fossils):
        rows += zip(group, place.arena.fossil_bytes(index), strict=True)
    with torch.no_grad():
        for graft, params in rows:
            for name, value in graft.unflatten(params).items():
                value.copy_(torch.randint(-1, 2, value.shape, generator=generator))
                value.mul_(128 if name == "w1" else 1).add_(16 if name == "b1" else 0)
    return place


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_non_contiguous_activations_give_the_same(reads):
    place = in_whole_numbers(mixed(make_place(torch.float64), reads))
    x, y = (tensor.detach().mul(4).round() for tensor in activations(place, 4, 5, dtype=torch.float64))
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (y, x)]
    assert not turned[0].is_contiguous()
    assert torch.equal(grown(place, *turned), grown(place, y, x))
    assert torch.equal(grown(place, y, x), grown_by_loop(place, y, x))


def test_the_hosts_output_is_not_written_into():
    place = mixed(make_place(), "chunk")
    x, y = activations(place, 3)
    before = y.detach().clone()
    grown(place, y, x)
    assert torch.equal(y, before)


def test_an_activation_in_place_behind_the_layer_trains():
    """Linear, graft, ReLU(inplace=True): the commonest pattern there is."""
    torch.manual_seed(0)
    grads = []
    for is_inplace in (True, False):
        model = wrapped(nn.Sequential(nn.Linear(6, 8), nn.ReLU(is_inplace), nn.Linear(8, 4)), {"0": 1, "": 1})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        grow(place_of(model, "0"), hidden=3, reads="chunk")
        model(torch.linspace(-1, 1, 18).view(3, 6)).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(grads[0]) == 5
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_alpha_zero_is_the_exact_identity():
    place = make_place()
    for seed in range(4):
        grow(place, seed, State.GRAFTING, hidden=3, alpha=0.0)
    x, y = activations(place, 5)
    with torch.no_grad():
        y[0] = -0.0
    output = grown(place, y, x)
    assert torch.equal(output.view(torch.int32), y.view(torch.int32))  # the sign of zero too
    output.backward(torch.ones_like(output))
    assert torch.equal(y.grad, torch.ones_like(y))
    assert not x.grad.any()


def test_grafts_of_one_shape_run_as_one_batch_whatever_their_number(monkeypatch, kernels):
    """No Python loop over seeds: as many calls of delta as there are groups."""
    place = lone_place(Ports(6, 40), 20)
    for seed in range(20):
        grow(place, seed, hidden=3)
    calls, delta = [], BottleneckMLP.delta
    monkeypatch.setattr(BottleneckMLP, "delta", lambda self, params, x: calls.append(1) or delta(self, params, x))
    grown(place, *reversed(activations(place, 5)))
    assert len(calls) == (1 if kernels == "reference" else 0)


# Slots


def test_the_arena_has_no_elements_until_the_first_graft_and_none_after_the_last():
    model = wrapped(mlp(6, 8, 4), ["0"])
    arena = place_of(model, "0").arena
    assert arena.slots.numel() == 0
    parameter = arena.slots
    grow(place_of(model, "0"), 0, hidden=3)
    grow(place_of(model, "0"), 1, State.TRAINING, hidden=3)
    assert arena.num_slots == 1  # a graft in isolation needs none
    assert arena.slots is parameter
    remove(place_of(model, "0"), 0)
    assert (arena.slots.numel(), arena.num_slots, arena.exp_avg.numel()) == (0, 0, 0)
    assert arena.slots is parameter


def test_a_freed_slot_is_used_again_with_fresh_optimizer_state():
    place = make_place()
    for seed in range(3):
        grow(place, seed, hidden=3)
    for _ in range(5):
        step_slots([(place, torch.ones_like(place.arena.slots))], lr=0.1, weight_decay=0.0)
    remove(place, 1)
    lifecycle = grow(place, 3, hidden=2, scale=None)
    arena, slot = place.arena, place.arena.grafts[lifecycle].slot
    assert (arena.num_slots, slot) == (3, 1)
    assert not arena.exp_avg[1].any()
    assert not arena.exp_avg_sq[1].any()
    assert arena.updates.tolist() == [5, 0, 5]
    size = arena.grafts[lifecycle].num_parameters
    assert not arena.slots_SN()[1, size:].any()  # nothing of the larger graft before it is left


def test_resizing_keeps_bytes_and_optimizer_state():
    place = make_place()
    grow(place, 0, hidden=3)
    grow(place, 1, hidden=3)
    arena = place.arena
    step_slots([(place, torch.randn(arena.slots.shape))], lr=0.1, weight_decay=0.0)
    kept = [arena.slots_SN().detach().clone(), arena.exp_avg.clone(), arena.exp_avg_sq.clone(), arena.updates.clone()]
    parameter, size = arena.slots, arena.slots_SN().shape[1]
    grow(place, 2, hidden=9)
    assert arena.slots is parameter
    assert arena.slots_SN().shape[1] > size
    now = [arena.slots_SN()[:2, :size], arena.exp_avg[:2, :size], arena.exp_avg_sq[:2, :size], arena.updates[:2]]
    assert all(torch.equal(before, after) for before, after in zip(kept, now, strict=True))
    assert not arena.slots_SN()[:2, size:].any()


def test_a_larger_arena_goes_on_behind_the_same_optimizer_and_clipping():
    model = wrapped(mlp(6, 8, 4), ["0"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    SlotOptimizer(places(model), optimizer, lambda: 0.01, weight_decay=0.01)
    for seed in range(3):
        grow(place_of(model, "0"), seed, hidden=2 + seed)
        model(torch.randn(5, 6)).square().sum().backward()
        assert torch.isfinite(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()


def test_a_loss_that_is_still_held_does_not_stop_growth():
    """Its graph keeps the node that accumulates the slots' gradient, with the size that they had."""
    model = wrapped(mlp(6, 8, 4), ["0"])
    held = []
    for seed in range(3):
        grow(place_of(model, "0"), seed, hidden=3)
        held.append(model(torch.ones(5, 6)).square().sum())
        held[-1].backward()
        assert place_of(model, "0").arena.slots.grad.shape == place_of(model, "0").arena.slots.shape
    remove(place_of(model, "0"), 1)
    assert place_of(model, "0").arena.slots.dtype == torch.float32


def test_a_graft_without_parameters_lives_and_leaves_like_any_other():
    place = make_place()
    x, y = activations(place, 5)
    grow(place, 1, blueprint="noop", scale=None)
    assert torch.equal(grown(place, y, x), y)
    grow(place, 2, hidden=3)
    assert (grown(place, y, x) != y).any(dim=0).tolist() == [False] * 5 + [True] * 3 + [False] * 3
    remove(place, 2)
    transition_to(place, 1, State.FOSSILIZED)
    assert torch.equal(grown(place, y, x), y)


def test_memory_is_as_wide_as_the_strategies_of_live_grafts_need():
    """None for fixed ramps; a slot's row is zero when a ramp begins, and stays its graft's when the arena grows."""
    place = make_place()
    blend_in(place, 0, 1, "fixed_ramp")
    assert place.arena.memory.shape == (1, 0)
    blend_in(place, 1, 2, "grad_norm_gated")
    place.arena.memory[1] = 3.0
    blend_in(place, 2, 3, "drift_controlled")
    assert place.arena.memory.shape == (3, 1 + 1024)
    assert place.arena.memory[1, :34].eq(3).all()
    assert not place.arena.memory[[0, 2]].any()
    remove(place, 1)
    blend_in(place, 1, 4, "performance_linked")
    assert place.arena.grafts[4].slot == 1
    assert not place.arena.memory.any()


# Fossils


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_becoming_a_fossil_changes_no_bit_of_the_output(reads):
    place = make_place()
    x, y = activations(place, 5)
    for _ in range(2):
        for seed in range(4):
            grow(place, seed, hidden=3, reads=reads)
        before = grown(place, y, x)
        for seed in range(4):
            transition_to(place, seed, State.FOSSILIZED)
            torch.testing.assert_close(grown(place, y, x), before, rtol=1e-6, atol=1e-6)  # batches of another size
            release(place, seed)
    assert place.arena.slots.numel() == 0
    assert sum(len(group) for group in place.arena.fossils) == 8


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_a_fossil_never_runs_before_one_that_was_there_when_it_grew(reads):
    """Seed 1's fossil, a group over all channels, then seed 2's: it must not join seed 1's in front of the group."""
    place = make_place()
    x, y = activations(place, 5)
    for seed_id in (1, "all", 2):
        grow(place, seed_id, hidden=3, reads=reads)
        before = grown(place, y, x)
        transition_to(place, seed_id, State.FOSSILIZED)
        assert torch.equal(grown(place, y, x), before)
        release(place, seed_id)


def test_fossils_of_one_shape_share_a_batch():
    place = make_place()
    for seed in (1, 2, 3):
        grow(place, seed, State.FOSSILIZED, hidden=3)
    assert [len(group) for group in place.arena.fossils] == [3]


def test_a_fossil_keeps_its_bytes_and_is_no_parameter():
    place = make_place()
    lifecycle = grow(place, 2, hidden=3)
    live = place.arena.params_of(place.arena.grafts[lifecycle]).detach().clone()
    transition_to(place, 2, State.FOSSILIZED)
    assert torch.equal(place.arena.fossil_bytes(0)[0], live)
    assert [name for name, _ in place.named_parameters()] == ["arena.slots"]
    assert not place.arena.fossil_bytes(0).requires_grad


def test_a_fossil_forgets_how_it_was_blended_in():
    """A checkpoint with fossils of a user's strategy loads where that strategy is not registered."""
    place = make_place()
    blend_in(place, 1, 1, "drift_controlled")
    place.arena.fossilize(1)
    assert place.arena.topology()["fossils"][0][0]["strategy"] == "fixed_ramp"


@pytest.mark.parametrize("num_seeds", [1, 3, 11])
def test_after_rechunking_fossils_stay_and_belong_to_the_seeds_that_own_their_channels(num_seeds):
    place = make_place()
    x, y = activations(place, 5)
    for seed_id in (0, 3, "all"):
        grow(place, seed_id, State.FOSSILIZED, hidden=3)
        release(place, seed_id)
    before = grown(place, y, x)
    place.rechunk(num_seeds)
    assert torch.equal(grown(place, y, x), before)
    for group in place.arena.groups:
        for graft in group.grafts:
            first, end = graft.seeds
            assert place.bounds[first] <= graft.channels[0] < place.bounds[first + 1]
            assert place.bounds[end - 1] < graft.channels[1] <= place.bounds[end]
    assert grow(place, num_seeds - 1, State.FINE_TUNING, hidden=3)
    assert not torch.equal(grown(place, y, x), before)


def test_after_rechunking_the_fault_of_a_fossil_is_raised_at_its_new_seed():
    place = make_place()
    x, y = activations(place, 5)
    grow(place, 3, State.FOSSILIZED, hidden=3)
    release(place, 3)
    place.rechunk(2)
    place.arena.fossil_bytes(0).fill_(torch.nan)
    assert torch.equal(grown(place, y, x), y)
    assert place.state.fault.tolist() == [0, 2]
