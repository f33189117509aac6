"""Grafts are stepped by Esper alone, whatever the user's optimizer is."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, AdamW, RAdam

from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.place import Place
from esper.kasmina.places.slot_optimizer import SlotOptimizer, step_slots
from tests.kasmina.growing import grow, mlp, place_of, remove, transition_to, wrapped

LR = 1e-2
OPTIMIZERS = {
    "AdamW": lambda parameters: AdamW(parameters, lr=LR, weight_decay=0.1),
    "AdamW fused": lambda parameters: AdamW(parameters, lr=LR, weight_decay=0.1, fused=True),
    "SGD": lambda parameters: SGD(parameters, lr=LR, momentum=0.9, weight_decay=0.1),
    "Adafactor": lambda parameters: Adafactor(parameters, lr=LR, weight_decay=0.1),
    "RAdam": lambda parameters: RAdam(parameters, lr=LR, weight_decay=0.1),
}


class Bench:
    """An MLP with four seeds at its middle layer, an optimizer, and batches from a stream of its own."""

    def __init__(self, make_optimizer, weight_decay: float = 0.01, own_slots: bool = True):
        self.model = wrapped(mlp(6, 8, 11, 4), {"2": 4})
        self.place: Place = place_of(self.model, "2")
        self.optimizer = make_optimizer(self.model.parameters())
        if own_slots:
            self.slots = SlotOptimizer(places(self.model), self.optimizer, lambda: LR, weight_decay)
        self.generator = torch.Generator().manual_seed(0)

    def backward(self) -> None:
        x = torch.randn(16, 6, generator=self.generator)
        target = torch.randint(0, 4, (16,), generator=self.generator)
        nn.functional.cross_entropy(self.model(x), target).backward()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def bytes_of(self, lifecycle: int) -> torch.Tensor:
        return self.place.arena.params_of(self.place.arena.grafts[lifecycle]).detach().clone()

    def largest_updates(self, lifecycle: int, steps: int) -> list[float]:
        sizes = []
        for _ in range(steps):
            before = self.bytes_of(lifecycle)
            self.train(1)
            sizes.append(float((self.bytes_of(lifecycle) - before).abs().max()))
        return sizes

    def reuse_a_slot_late(self) -> int:
        """Two grafts for 200 steps; then one leaves, and a third gets its slot."""
        grow(self.place, 1, hidden=3)
        grow(self.place, 2, hidden=3)
        self.train(200)
        remove(self.place, 1)
        lifecycle = grow(self.place, 3, hidden=3, lifecycle=9, scale=None)
        assert self.place.arena.grafts[lifecycle].slot == 0
        return lifecycle


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_updates_of_a_late_slot_are_no_larger_than_the_rate(name):
    bench = Bench(OPTIMIZERS[name])
    lifecycle = bench.reuse_a_slot_late()
    sizes = bench.largest_updates(lifecycle, 5)
    assert max(sizes) <= 1.05 * LR
    assert min(sizes) > 0.1 * LR


def test_the_users_optimizer_would_move_a_late_slot_too_far():
    """Negative control: it counts steps per parameter, so a late slot has no bias correction."""
    bench = Bench(OPTIMIZERS["AdamW"], own_slots=False)
    grow(bench.place, 1, hidden=3)
    grow(bench.place, 2, State.EVALUATING, hidden=3)  # its slot gets zero gradients meanwhile
    bench.train(200)
    transition_to(bench.place, 2, State.FINE_TUNING)
    assert max(bench.largest_updates(2, 5)) > 1.5 * LR


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_graft_takes_the_same_steps_behind_any_optimizer(name):
    """With the host at rest, and the gradients thereby equal, only Esper's own AdamW is left."""
    results = []
    for which in (name, "SGD"):
        bench = Bench(OPTIMIZERS[which])
        for parameter in bench.model.parameters():
            parameter.requires_grad_(parameter is bench.place.arena.slots)
        grow(bench.place, 1, hidden=3)
        bench.train(20)
        results.append(bench.bytes_of(1))
    assert torch.equal(*results)


def test_a_slot_equals_torchs_adamw():
    """Over 50 steps, to float precision; also for a slot that came late and for rates that change."""
    place = Bench(OPTIMIZERS["SGD"]).place
    generator = torch.Generator().manual_seed(1)
    references: dict[int, tuple[nn.Parameter, AdamW]] = {}
    for step in range(70):
        if step in (0, 20):
            lifecycle = grow(place, 1 if step == 0 else 2, hidden=3, reads="chunk")
            graft = place.arena.grafts[lifecycle]
            copy = nn.Parameter(place.arena.params_of(graft).detach().clone())
            references[lifecycle] = (copy, AdamW([copy], weight_decay=0.1))
        lr = LR * (1 + math.sin(step))
        grad = torch.randn(place.arena.slots.shape, generator=generator) * 10.0 ** (step % 5 - 3)
        step_slots([(place, grad)], lr, weight_decay=0.1)
        for lifecycle, (copy, reference) in references.items():
            graft = place.arena.grafts[lifecycle]
            copy.grad = grad.view(place.arena.num_slots, -1)[graft.slot, : graft.num_parameters].clone()
            reference.param_groups[0]["lr"] = lr
            reference.step()
    for lifecycle, (copy, _) in references.items():
        torch.testing.assert_close(place.arena.params_of(place.arena.grafts[lifecycle]), copy)


@pytest.mark.parametrize("by_family", [True, False])
def test_families_train_at_their_own_multiples_of_the_rate_if_that_is_asked_for(by_family):
    """In one place, and in one step."""

    class Slow(BottleneckMLP):
        id = "slow"
        rate = 0.25

    bench = Bench(OPTIMIZERS["SGD"], own_slots=False)
    one, other = grow(bench.place, 1, hidden=3), grow(bench.place, 2, hidden=3)
    arena = bench.place.arena
    arena.grafts[other] = replace(arena.grafts[other], blueprint=Slow(hidden=3))
    arena.regroup()
    before = {number: bench.bytes_of(number) for number in (one, other)}
    step_slots([(bench.place, torch.ones_like(arena.slots))], LR, weight_decay=0.0, by_family=by_family)
    moved = {number: float((before[number] - bench.bytes_of(number)).abs().max()) for number in before}
    assert moved[one] == pytest.approx(LR, rel=1e-3)
    assert moved[other] == pytest.approx(LR * (0.25 if by_family else 1.0), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "state", "set_to_none"),
    [
        *((name, State.EVALUATING, True) for name in OPTIMIZERS),
        ("AdamW", State.EVALUATING, False),
        ("SGD", State.STABILIZATION, False),
        ("AdamW fused", State.STABILIZATION, True),
    ],
)
def test_frozen_grafts_and_fossils_keep_their_bytes(name, state, set_to_none):
    """Over 100 steps with weight decay in the user's optimizer and in Esper's, beside one that trains."""
    bench = Bench(OPTIMIZERS[name], weight_decay=0.1)
    grow(bench.place, 0, State.FOSSILIZED, hidden=3)
    frozen, moving = grow(bench.place, 1, state, hidden=3), grow(bench.place, 2, hidden=3)
    before = {lifecycle: bench.bytes_of(lifecycle) for lifecycle in (frozen, moving)}
    fossil = bench.place.arena.fossil_bytes(0).clone()
    weight = bench.model[2].weight.detach().clone()
    for _ in range(100):
        bench.backward()
        bench.optimizer.step()
        bench.optimizer.zero_grad(set_to_none=set_to_none)
    assert torch.equal(bench.bytes_of(frozen), before[frozen])
    assert torch.equal(bench.place.arena.fossil_bytes(0), fossil)
    assert not torch.equal(bench.bytes_of(moving), before[moving])
    assert not torch.equal(bench.model[2].weight, weight)


def test_weight_decay_would_move_a_frozen_graft():
    """Negative control: with the user's optimizer in charge of the arena, the bytes change."""
    bench = Bench(OPTIMIZERS["AdamW"], own_slots=False)
    frozen = grow(bench.place, 1, State.EVALUATING, hidden=3)
    before = bench.bytes_of(frozen)
    bench.train(5)
    assert not torch.equal(bench.bytes_of(frozen), before)


def test_a_control_that_is_never_trained_keeps_its_bytes_beside_one_that_is():
    bench = Bench(OPTIMIZERS["AdamW"], weight_decay=0.1)
    fixed = grow(bench.place, 1, blueprint="random_frozen", hidden=3)
    grow(bench.place, 2, hidden=3)
    before = bench.bytes_of(fixed)
    bench.train(10)
    assert torch.equal(bench.bytes_of(fixed), before)


def test_a_graft_that_is_blended_out_keeps_its_bytes():
    bench = Bench(OPTIMIZERS["AdamW"])
    lifecycle = grow(bench.place, 1, hidden=3)
    bench.train(5)
    transition_to(bench.place, 1, State.CULLED)
    before = bench.bytes_of(lifecycle)
    bench.train(5)
    assert torch.equal(bench.bytes_of(lifecycle), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_arena_never_reaches_the_users_optimizer(name):
    bench = Bench(OPTIMIZERS[name])
    grow(bench.place, 1, hidden=3)
    bench.train(10)
    assert bench.place.arena.slots not in bench.optimizer.state
    assert bench.model[2].weight in bench.optimizer.state
    assert bench.place.arena.slots.grad is None


def test_a_slot_without_a_finite_gradient_rests():
    bench = Bench(OPTIMIZERS["SGD"])
    first, second = grow(bench.place, 1, hidden=3), grow(bench.place, 2, hidden=3)
    before = {lifecycle: bench.bytes_of(lifecycle) for lifecycle in (first, second)}
    grad = torch.ones_like(bench.place.arena.slots)
    grad[0] = torch.nan
    step_slots([(bench.place, grad)], LR, 0.01)
    assert torch.equal(bench.bytes_of(first), before[first])
    assert torch.isfinite(bench.place.arena.exp_avg).all()
    assert not torch.equal(bench.bytes_of(second), before[second])
    assert bench.place.arena.updates.tolist() == [0, 1]


def test_detached_it_steps_no_more():
    bench = Bench(OPTIMIZERS["AdamW"])
    lifecycle = grow(bench.place, 1, hidden=3)
    bench.slots.detach()
    bench.place.arena.slots.requires_grad_(False)
    before = bench.bytes_of(lifecycle)
    bench.train(2)
    assert torch.equal(bench.bytes_of(lifecycle), before)


# Gradient scalers


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_gradient_scaler_changes_nothing_but_the_scale(is_fused):
    """Fused optimizers hand over gradients that are still multiplied by the scale, a power of two here."""
    results = []
    for scale in (None, 1024.0):
        bench = Bench(lambda parameters: AdamW(parameters, lr=LR, fused=is_fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        lifecycle = grow(bench.place, 1, hidden=3)
        for _ in range(10):
            x = torch.randn(16, 6, generator=bench.generator)
            scaler.scale(bench.model(x).square().mean()).backward()
            scaler.step(bench.optimizer)
            scaler.update()
            bench.optimizer.zero_grad()
        results.append((bench.bytes_of(lifecycle), bench.model[2].weight.detach().clone()))
    for plain, scaled in zip(*results, strict=True):
        assert torch.equal(plain, scaled)


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_step_that_the_scaler_skips_leaves_grafts_alone(is_fused):
    bench = Bench(lambda parameters: AdamW(parameters, lr=LR, fused=is_fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    lifecycle = grow(bench.place, 1, hidden=3)
    before = bench.bytes_of(lifecycle)
    scaler.scale(bench.model(torch.randn(16, 6)).square().mean()).backward()
    bench.model[0].weight.grad[0, 0] = math.inf
    scaler.step(bench.optimizer)
    scaler.update()
    bench.optimizer.zero_grad()
    assert scaler.get_scale() == 512.0
    assert torch.equal(bench.bytes_of(lifecycle), before)
    assert bench.place.arena.updates.tolist() == [0]


# Refusals


class NeedsClosure(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure):
        closure()


@pytest.mark.parametrize("make", [torch.optim.LBFGS, NeedsClosure])
def test_an_optimizer_that_needs_a_closure_is_refused_by_name(make):
    model = wrapped(mlp(6, 8, 4), ["0"])
    optimizer = make(model.parameters())
    with pytest.raises(ConfigError, match=f"{make.__name__}.*closure"):
        SlotOptimizer(places(model), optimizer, lambda: LR, 0.0)
    assert not optimizer._optimizer_step_pre_hooks


class Twice(torch.optim.SGD):
    """Evaluates its closure once more, as one with a line search does."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        return super().step(closure)


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_step_with_a_closure_is_the_step_after_it(name, is_named):
    """To the bit, of the host and of grafts."""
    benches = [Bench(OPTIMIZERS[name]) for _ in range(2)]
    for bench in benches:
        torch.manual_seed(0)
        grow(bench.place, 1, hidden=3)
    for _ in range(5):
        benches[0].backward()
        benches[0].optimizer.step()

        def closure():
            benches[1].backward()
            return 0.25

        step = benches[1].optimizer.step
        assert (step(closure=closure) if is_named else step(closure)) == 0.25
        for bench in benches:
            bench.optimizer.zero_grad()
    one, other = (bench.model.state_dict() for bench in benches)
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    assert benches[1].place.arena.updates.tolist() == [5.0]


def test_what_is_no_closure_is_refused_before_anything_moves():
    bench = Bench(OPTIMIZERS["SGD"])
    bench.backward()
    weight = bench.model[2].weight.detach().clone()
    for call in (lambda: bench.optimizer.step(0.5), lambda: bench.optimizer.step(lambda: 0.0, 3)):
        with pytest.raises(ConfigError, match="closure and nothing else"):
            call()
    assert torch.equal(bench.model[2].weight, weight)
    bench.optimizer.step(None)
    assert not torch.equal(bench.model[2].weight, weight)


def test_a_closure_that_is_called_twice_is_refused():
    bench = Bench(lambda parameters: Twice(parameters, lr=0.1))
    with pytest.raises(ConfigError, match="more than once"):
        bench.optimizer.step(bench.backward)


def test_an_optimizer_built_before_wrap_is_refused_with_the_remedy():
    model = mlp(6, 8, 4)
    optimizer = AdamW(model.parameters())
    wrapped(model, ["0", "2"])
    with pytest.raises(ConfigError, match=r"does not hold the grafts of '0', '2'\. Call esper\.wrap first"):
        SlotOptimizer(places(model), optimizer, lambda: LR, 0.0)
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_of_the_head_alone_is_refused_by_place():
    model = wrapped(mlp(6, 8, 4), ["0", "2"])
    with pytest.raises(ConfigError, match="the grafts of '0'"):
        SlotOptimizer(places(model), AdamW(model[2].parameters()), lambda: LR, 0.0)


def test_layers_frozen_after_wrapping_are_refused_by_place():
    model = wrapped(mlp(6, 8, 4), ["0", "2"])
    model[0].requires_grad_(False)
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    with pytest.raises(ConfigError, match=r"grafts of '0', .*Freeze them before"):
        SlotOptimizer(places(model), optimizer, lambda: LR, 0.0)
    assert not optimizer._optimizer_step_pre_hooks


def test_grafts_on_layers_frozen_before_wrapping_are_trained():
    host = mlp(6, 8, 4)
    host[0].requires_grad_(False)
    model = wrapped(host, ["0"])
    place, optimizer = place_of(model, "0"), SGD(model.parameters(), lr=LR)
    SlotOptimizer(places(model), optimizer, lambda: LR, 0.0)
    before = place.arena.params_of(place.arena.grafts[grow(place, 1, hidden=3)]).detach().clone()
    model(torch.randn(5, 6)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(place.arena.params_of(place.arena.grafts[1]), before)
