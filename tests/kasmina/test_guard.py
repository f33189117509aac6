"""Containment: a faulty graft is the identity in that very forward and backward, for its own chunk only."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import esper.kasmina.grafts.group as group_module
import esper.kasmina.grafts.guard as guard_module
from esper.blueprints import catalogue
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.guard import FOSSIL_FAULT, LIVE_FAULT, SumOfKept, finite_G
from esper.kasmina.host.layer import Place
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.few import few
from tests.kasmina.growing import grow, host_grads, mlp, place_of, wrapped

pytestmark = [
    pytest.mark.usefixtures("kernels"),
    pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning"),  # Triton's interpreter
]

STATES = [State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED]


@dataclass(frozen=True)
class Cusp(BottleneckMLP):
    """Finite everywhere, with the gradient 0 * inf = nan where its first layer gives zero."""

    id: ClassVar[str] = "cusp"

    def delta(self, params, x):
        return super().delta(params, x) + (x @ params["w1"].mT).square().sum(dim=-1, keepdim=True).sqrt()


@dataclass(frozen=True)
class Rectified(BottleneckMLP):
    """Finite also where a bias of its hidden layer is -inf."""

    id: ClassVar[str] = "rectified"

    def delta(self, params, x):
        hidden = torch.relu(nn.functional.linear(x, params["w1"], params["b1"]))
        return nn.functional.linear(hidden, params["w2"], params["b2"])


BLUEPRINT_OF = {"nan gradient": "cusp", "masked weight": "rectified"}


@pytest.fixture(autouse=True)
def _blueprints(monkeypatch):
    for kind in (Cusp, Rectified):
        monkeypatch.setitem(catalogue.CATALOGUE, kind.id, kind)


def params_of(place: Place, lifecycle: int) -> dict[str, torch.Tensor]:
    """Views of a graft's parameters by name, wherever they are."""
    if lifecycle in place.arena.grafts:
        graft = place.arena.grafts[lifecycle]
        return graft.unflatten(place.arena.params_of(graft).detach())
    for index, group in enumerate(place.arena.fossils):
        for row, graft in enumerate(group):
            if graft.lifecycle == lifecycle:
                return graft.unflatten(place.arena.fossil_bytes(index)[row])
    raise KeyError(lifecycle)


def spoil(place: Place, lifecycle: int, fault: str) -> None:
    params = params_of(place, lifecycle)
    match fault:
        case "nan weight":
            params["w1"].view(-1)[1] = math.nan
        case "inf weight":
            params["w2"].view(-1)[0] = math.inf
        case "nan bias":
            params["b2"][-1] = math.nan
        case "masked weight":  # of a finite output
            params["b1"].fill_(-math.inf)
        case "infinite output":  # of finite weights
            params["w1"].fill_(3e38)
            params["w2"].fill_(3e38)
        case "nan gradient":  # of a finite output
            params["w1"].zero_()


FORWARD_FAULTS = ["nan weight", "inf weight", "nan bias", "masked weight", "infinite output"]
FAULTS = [*FORWARD_FAULTS, "nan gradient"]


def trained_once(model: nn.Module, optimizer=None) -> dict[str, object]:
    """One training step with clipping; what the host saw of it."""
    torch.manual_seed(0)
    x, target = torch.randn(16, 6), torch.randint(0, 4, (16,))
    model.zero_grad()
    x.requires_grad_()
    output = model(x)
    nn.functional.cross_entropy(output, target).backward()
    seen = {"output": output.detach(), "dx": x.grad, **host_grads(model)}
    host = [parameter for name, parameter in model.named_parameters() if "_esper" not in name]
    seen["norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    seen |= {f"clipped {index}": parameter.grad.clone() for index, parameter in enumerate(host)}
    return seen


def differing(one: dict, other: dict) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def case(layer_id: str, fault: str, state: State):
    """The same MLP bare and with a faulty graft; reads its chunk at a layer, the input at blocks."""
    bare = mlp(6, 8, 8, 4)
    model = wrapped(mlp(6, 8, 8, 4), {layer_id: 4 if layer_id == "2" else 1})
    place = place_of(model, layer_id)
    blueprint = BLUEPRINT_OF.get(fault, "bottleneck_mlp")
    lifecycle = grow(place, 1 if layer_id == "2" else "all", state, blueprint=blueprint, hidden=3)
    spoil(place, lifecycle, fault)
    return bare, model, place, lifecycle


def flags_of(state: State, layer_id: str) -> list[int]:
    """Those of the place when only the graft of ``case`` is faulty."""
    bit = FOSSIL_FAULT if state is State.FOSSILIZED else LIVE_FAULT
    return [0, bit, 0, 0] if layer_id == "2" else [bit]


def by_name(part):
    """Of a parameter that is a state; pytest names the others."""
    return part.name if isinstance(part, State) else None


# Each fault at each kind of place while it trains, one in fossils of each, and all states at the place of chunks.
CASES = [
    (fault, state, layer_id)
    for fault in FORWARD_FAULTS
    for state in STATES
    for layer_id in ("2", "0:2", "")
    if layer_id == "2" or state is State.FINE_TUNING or (fault, state) == ("nan weight", State.FOSSILIZED)
]


USUAL = [case for case in CASES if case[0] == "nan weight" or case[1:] == (State.FINE_TUNING, "2")]


@pytest.mark.parametrize(("fault", "state", "layer_id"), few(CASES, USUAL), ids=by_name)
def test_a_faulty_graft_is_the_identity_in_the_very_step(fault, state, layer_id):
    """Output, host gradients before and after clipping, and the norm are the bare model's, to the bit."""
    bare, model, place, _ = case(layer_id, fault, state)
    assert differing(trained_once(model), trained_once(bare)) == []
    assert place.arena.slots.grad is None or not place.arena.slots.grad.any()
    assert place.state.fault.tolist() == flags_of(state, layer_id)


@pytest.mark.parametrize(
    ("state", "layer_id"), [*((state, "2") for state in STATES), (STATES[0], ""), (STATES[-1], "0:2")], ids=by_name
)
def test_a_gradient_fault_leaves_the_forward_and_a_finite_host(state, layer_id):
    bare, model, place, _ = case(layer_id, "nan gradient", state)
    seen = trained_once(model)
    assert not torch.equal(seen["output"], trained_once(bare)["output"])
    assert all(torch.isfinite(value).all() for value in seen.values())
    assert place.arena.slots.grad is None or not place.arena.slots.grad.any()
    assert place.state.fault.tolist() == flags_of(state, layer_id)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_gradient_fault_drops_all_the_contributions_of_the_graft(state):
    """The host's gradients are those of a graft that adds its output as a constant."""
    _, model, place, lifecycle = case("", "nan gradient", state)
    seen = trained_once(model)
    torch.manual_seed(0)
    delta = Cusp(hidden=3).delta(params_of(place, lifecycle), torch.randn(16, 6))
    expected = trained_once(nn.Sequential(*mlp(6, 8, 8, 4), Plus(delta)))
    assert differing(seen, expected) == []


class Plus(nn.Module):
    def __init__(self, delta):
        super().__init__()
        self.delta = delta

    def forward(self, x):
        return x + self.delta


@pytest.mark.parametrize("fault", FAULTS)
def test_other_grafts_of_the_same_batch_are_unaffected(fault):
    """To the bit: the faulty seed's neighbours compute and learn as if its alpha were 0."""
    results = []
    for is_off in (False, True):
        model = wrapped(mlp(6, 8, 8, 4), {"2": 4})
        place = place_of(model, "2")
        for seed in range(4):
            grow(place, seed, blueprint=BLUEPRINT_OF.get(fault, "bottleneck_mlp"), hidden=3)
        spoil(place, 2, fault)
        if is_off:
            place.state.alpha[1] = 0.0
            params_of(place, 2)["w1"].fill_(0.1)
            params_of(place, 2)["b1"].fill_(0.1)
            params_of(place, 2)["w2"].fill_(0.1)
            params_of(place, 2)["b2"].fill_(0.1)
        elif fault == "nan gradient":
            params_of(place, 2)["w2"].zero_()
            params_of(place, 2)["b2"].zero_()  # its output is 0, as that of the other one
        seen = trained_once(model)
        results.append(seen | {"slots": place.arena.slots.grad.clone()})
        assert place.state.fault.tolist() == [0, 0 if is_off else LIVE_FAULT, 0, 0]
    assert differing(*results) == []
    assert results[0]["slots"].view(4, -1).any(dim=1).tolist() == [True, False, True, True]


MANY = 64


def crowd(reads: str, fault: str, off: int | None = None) -> tuple[nn.Module, Place]:
    """A layer with a graft at each of 64 seeds, one of them faulty; its input takes a gradient.

    Args:
        off: a graft whose alpha is 0, with parameters that are not faulty.
    """
    model = wrapped(mlp(6, 8, 2 * MANY, 4), {"2": MANY})
    place = place_of(model, "2")
    for seed in range(MANY):
        grow(place, seed, blueprint=BLUEPRINT_OF.get(fault, "bottleneck_mlp"), hidden=3, reads=reads)
    if off is None:
        spoil(place, 24, fault)
        if fault == "nan gradient":  # its output is 0 then, as that of one at alpha 0
            params_of(place, 24)["w2"].zero_()
            params_of(place, 24)["b2"].zero_()
    else:
        place.state.alpha[off] = 0.0
    return model, place


@pytest.mark.parametrize(
    ("fault", "reads"),
    few(
        [(fault, reads) for fault in FAULTS for reads in ("input", "chunk")],
        [("inf weight", "chunk"), ("nan gradient", "input")],
    ),
)
def test_of_many_grafts_in_one_batch_the_faulty_one_alone_is_contained(fault, reads):
    """To the bit: output and host gradients are those of the other 63, which go on learning."""
    model, place = crowd(reads, fault)
    other, other_place = crowd(reads, fault, off=23)
    seen, expected = trained_once(model), trained_once(other)
    assert len(place.arena.groups) == 1
    assert differing(seen, expected) == []
    assert place.state.fault.tolist() == [LIVE_FAULT * (seed == 23) for seed in range(MANY)]
    assert torch.equal(place.arena.slots.grad, other_place.arena.slots.grad)
    learns = place.arena.slots.grad.view(MANY, -1).any(dim=1)
    assert not learns[23]
    assert learns.sum() > MANY // 2  # a ReLU behind the layer stops some


@pytest.mark.parametrize("count", [1, 2, 5])
def test_several_faulty_grafts_of_a_batch_are_each_contained(count):
    model, place = crowd("input", "nan gradient")
    for number in range(1, count):
        spoil(place, number, "nan weight")
    seen = trained_once(model)
    assert all(torch.isfinite(value).all() for value in seen.values())
    assert int((place.state.fault == LIVE_FAULT).sum()) == count


def test_a_batch_of_which_all_are_faulty_is_the_identity():
    bare = mlp(6, 8, 2 * MANY, 4)
    model, place = crowd("input", "none")
    for graft in place.arena.live:
        place.arena.params_of(graft).detach().fill_(math.nan)
    assert differing(trained_once(model), trained_once(bare)) == []


def test_without_the_choice_of_grafts_to_sum_one_faulty_gradient_reaches_the_host(monkeypatch, kernels):
    """Negative control: 63 sound grafts do not hide the 64th."""
    if kernels == "triton":
        pytest.skip("the control is of the twin")
    model, _ = crowd("input", "nan gradient")
    assert torch.isfinite(trained_once(model)["dx"]).all()

    class Plain:
        @staticmethod
        def apply(values, keep_G):
            return values.sum(0)

    monkeypatch.setattr(guard_module, "SumOfKept", Plain)
    assert not torch.isfinite(trained_once(model)["dx"]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finiteness_is_that_of_every_value(dtype):
    values = torch.zeros(6, 3, 5, dtype=dtype)
    largest = torch.finfo(dtype).max
    values[0].fill_(largest)
    values[1, 2, 4] = math.nan
    values[2, 0, 0] = math.inf
    values[3, 1, 1] = -math.inf
    values[4] = values[0].neg()
    assert finite_G(values).tolist() == [True, False, False, False, True, True]
    assert finite_G(values.transpose(1, 2)).tolist() == [True, False, False, False, True, True]
    assert finite_G(values[:, :0]).tolist() == [True] * 6


@pytest.mark.parametrize("kept", [[True] * 4, [True, False, True, False], [False] * 4], ids=str)
def test_the_sum_of_those_that_are_kept_takes_nothing_of_the_others(kept):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    expected = sum((values[index] for index, keep in enumerate(kept) if keep), start=torch.zeros(3, 5).double())
    spoiled = values.clone()
    spoiled[~torch.tensor(kept)] = math.nan
    torch.testing.assert_close(SumOfKept.apply(spoiled, torch.tensor(kept)), expected)
    leaf = values.requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: SumOfKept.apply(leaf, torch.tensor(kept)), leaf)


def test_a_faulty_fossil_does_not_touch_the_live_graft_on_its_channels():
    model = wrapped(mlp(6, 8, 8, 4), {"2": 1})
    place = place_of(model, "2")
    grow(place, "all", State.FOSSILIZED, hidden=3)
    spoil(place, 1, "nan weight")
    place.state.lifecycle.zero_()
    place.state.lifecycle_id.zero_()
    grow(place, "all", State.FINE_TUNING, hidden=3)
    alone = wrapped(mlp(6, 8, 8, 4), {"2": 1})
    grow(place_of(alone, "2"), "all", State.FINE_TUNING, hidden=3, lifecycle=2)
    assert differing(trained_once(model), trained_once(alone)) == []
    assert place.state.fault.tolist() == [FOSSIL_FAULT]
    assert place.arena.slots.grad.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer_id", ["2", "0:2", ""])
def test_a_share_that_is_not_finite_is_contained(layer_id, value):
    """Also in the backward pass, where zero times it would be nan."""
    bare, model, place, _ = case(layer_id, "none", State.FINE_TUNING)
    place.state.alpha[1 if layer_id == "2" else 0] = value
    assert differing(trained_once(model), trained_once(bare)) == []
    assert place.state.fault.tolist() == flags_of(State.FINE_TUNING, layer_id)


def test_a_sum_that_overflows_in_half_precision_is_the_grafts_fault():
    """65,000 and 65,000 are finite in float16, their sum is not."""
    model = wrapped(nn.Linear(2, 2).half(), [""], seeds_per_layer=1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(65_000)
    grow(place_of(model, ""), hidden=1)
    spoil(place_of(model, ""), 1, "nan gradient")
    params_of(place_of(model, ""), 1)["b2"].fill_(65_000)
    output = model(torch.ones(3, 2, dtype=torch.float16))
    assert torch.equal(output, torch.full((3, 2), 65_000, dtype=torch.float16))
    assert place_of(model, "").state.fault.tolist() == [LIVE_FAULT]


# Faults of the host


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer_id", ["2", ""])
def test_non_finite_input_blames_nobody(value, layer_id):
    _, model, place, _ = case(layer_id, "none", State.FINE_TUNING)
    x = torch.randn(16, 6)
    x[3, 2] = value
    output = model(x)
    assert not torch.isfinite(output).all()
    output[~output.isnan()].sum().backward()  # finite gradients come back into the graft
    assert not place.state.fault.any()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_unit_that_the_host_masks_with_infinity_learns_as_without_the_graft_behind_it(state):
    """Its gradient is zero, and clipping sees no other."""
    bare, model = mlp(6, 8, 8, 4), wrapped(mlp(6, 8, 8, 4), {"0": 4})
    place = place_of(model, "0")
    grow(place, 1, state, blueprint="bottleneck_mlp", hidden=3, reads="chunk")
    for one in (bare, model):
        one[0].bias.data[2] = -math.inf
    seen = trained_once(model)
    assert differing(seen, trained_once(bare)) == []
    assert torch.isfinite(seen["norm"])
    assert not place.state.fault.any()


@pytest.mark.parametrize("reads", ["chunk", "input"])
def test_a_non_finite_incoming_gradient_is_that_of_the_bare_host(reads):
    """A graft that has not learned yet makes no more of it non-finite."""
    models = mlp(6, 8, 4), wrapped(mlp(6, 8, 4), {"2": 2})
    place = place_of(models[1], "2")
    grow(place, 1, blueprint="bottleneck_mlp", hidden=3, reads=reads, scale=None)
    x, grad = torch.randn(16, 6), torch.ones(16, 4)
    grad[3, 2] = math.nan
    for model in models:
        model(x).backward(grad)
    one, other = (host_grads(model) for model in models)
    for name in one:
        assert torch.equal(one[name].nan_to_num(1e9), other[name].nan_to_num(1e9))
    assert not torch.isfinite(one["2.weight"]).all()
    assert torch.isfinite(one["2.weight"][3]).all()
    assert not place.state.fault.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer_id", ["2", ""])
def test_a_non_finite_output_of_the_host_blames_no_graft_beside_it(value, layer_id):
    _, model, place, _ = case(layer_id, "none", State.FINE_TUNING)
    with torch.no_grad():
        model[2].bias[3] = value
    output = model(torch.randn(16, 6))
    output.nan_to_num().sum().backward()
    assert not place.state.fault.any()


@pytest.mark.parametrize(
    ("value", "layer_id", "state"),
    [*((value, "2", state) for value in (math.nan, math.inf) for state in STATES), (math.inf, "", State.FINE_TUNING)],
    ids=by_name,
)
def test_a_non_finite_incoming_gradient_blames_nobody_and_reaches_the_host(value, layer_id, state):
    """The host has to see it: a gradient scaler or the spike detector acts on it."""
    _, model, place, _ = case(layer_id, "none", state)
    (model(torch.randn(16, 6)) * torch.tensor(value)).sum().backward()
    assert not place.state.fault.any()
    assert not torch.isfinite(model[0].weight.grad).all()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_graft_in_eval_mode_is_contained_and_raises_no_flag(fault):
    """State changes nowhere in eval mode, not even in a backward pass."""
    bare, model, place, _ = case("2", fault, State.FINE_TUNING)
    expected, seen = trained_once(bare.eval()), trained_once(model.eval())
    assert not place.state.fault.any()
    assert all(torch.isfinite(value).all() for value in seen.values())
    if fault != "nan gradient":
        assert differing(seen, expected) == []


# Negative controls: with a part of the guard replaced by the plain operation, the property fails


class _Through:
    """What the entry would be without the guard."""

    @staticmethod
    def apply(*values):
        x, params_GN, mark, is_shared, *_ = values
        return x.expand(len(params_GN), *x.shape) if is_shared else x, params_GN, mark


@pytest.mark.parametrize("fault", ["nan weight", "nan gradient"])
def test_without_the_entry_the_host_gets_nan_gradients(fault, monkeypatch, kernels):
    if kernels == "triton":
        pytest.skip("the control is of the twin")
    _, model, _, _ = case("", fault, State.FINE_TUNING)
    monkeypatch.setattr(group_module, "Entry", _Through)
    seen = trained_once(model)
    assert torch.isfinite(seen["output"]).all()
    assert not torch.isfinite(seen["dx"]).all()
    assert torch.isnan(seen["norm"])  # and clipping spreads it to every weight


def test_without_the_selection_the_output_is_nan(monkeypatch, kernels):
    if kernels == "triton":
        pytest.skip("the control is of the twin")
    _, model, _, _ = case("", "nan weight", State.FINE_TUNING)

    def multiplied(keep, values, otherwise=0.0):
        keep = keep.view(-1, *[1] * (values.dim() - 1))
        return keep * values + ~keep * otherwise

    monkeypatch.setattr(group_module, "select_G", multiplied)
    assert not torch.isfinite(trained_once(model)["output"]).all()


def test_without_the_exit_host_born_faults_would_be_blamed_on_the_graft(monkeypatch, kernels):
    if kernels == "triton":
        pytest.skip("the control is of the twin")
    _, model, place, _ = case("", "none", State.FINE_TUNING)

    class Assuming(group_module.Exit):
        @staticmethod
        def backward(ctx, *grads):
            return grads[0], torch.zeros(3, 1), None

    monkeypatch.setattr(group_module, "Exit", Assuming)
    (model(torch.randn(16, 6)) * torch.tensor(math.nan)).sum().backward()
    assert place.state.fault.any()


# Gradient scalers


@pytest.mark.parametrize("is_told", [True, False])
def test_an_overflow_of_the_loss_scale_is_not_the_grafts_fault(is_told):
    """The scaler sees it, skips the step and lowers the scale; the host gets nothing of it."""
    model = wrapped(mlp(6, 8), ["0"])
    place = place_of(model, "0")
    grow(place, blueprint="affine", scale=1e10)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9)
    SlotOptimizer([place], optimizer, lambda: 1e-3, 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1000)
    scale = torch.ones(())
    if is_told:
        place.state.loss_scale = scale
    for _ in range(12):
        scale.copy_(scaler.scale(torch.ones(())))
        scaler.scale(1e-6 * model(torch.ones(5, 6)).sum()).backward()
        if scaler.get_scale() == 2.0**120:
            assert all(one.grad.isfinite().all() for one in model.parameters() if one is not place.arena.slots)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert (place.state.fault.max().item() == LIVE_FAULT) is not is_told
    assert (scaler.get_scale() < 2.0**120) is is_told
    if is_told:
        assert 0 < place.arena.updates.item() < 12


def test_a_graft_whose_gradients_are_never_finite_is_at_fault_once_the_scale_is_one():
    place = place_of(wrapped(mlp(6, 8), ["0"]), "0")
    grow(place, blueprint="affine", scale=1e3)
    place.state.loss_scale = torch.full((), 2.0)
    huge = torch.full((3, 8), torch.finfo(torch.float32).max / 10)
    for scale, fault in ((2.0, 0), (1.0, LIVE_FAULT)):
        place.state.loss_scale.fill_(scale)
        y = torch.ones(3, 8, requires_grad=True)
        place.arena.add_to(y, y, place.state, place.site.geometry, raises_faults=True).backward(huge)
        assert torch.equal(y.grad, huge)
        assert place.state.fault.max().item() == fault
