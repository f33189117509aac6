"""What strategies look at, read off a host that trains."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.kasmina.grafts.strategies import MAX_WEIGHTS, STRATEGIES
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import covered_parameters
from esper.kasmina.places.grafting import advance, needs_signals
from esper.kasmina.places.lifecycle import transition
from esper.kasmina.places.signals import SignalReader
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import mlp, place_of, wrapped
from tests.kasmina.lone import blend_in


class Bench:
    """An MLP whose middle layer has four seeds; the first is blended in."""

    def __init__(self, strategy="drift_controlled", make_optimizer=None, ramp_steps: int = 20, **config):
        self.model = wrapped(mlp(6, 40, 40, 4), {"2": 4}, **config)
        self.place = place_of(self.model, "2")
        parameters = self.model.parameters()
        self.optimizer = AdamW(parameters, lr=0.0) if make_optimizer is None else make_optimizer(parameters)
        SlotOptimizer(places(self.model), self.optimizer, lambda: 1e-3, 0.0)
        self.reader = SignalReader([self.place], covered_parameters(self.model), self.optimizer)
        self.generator = torch.Generator().manual_seed(0)
        blend_in(self.place, 0, 1, strategy, ramp_steps)

    def backward(self, scale: float = 1.0):
        x = torch.randn(32, 6, generator=self.generator)
        target = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        loss = nn.functional.cross_entropy(self.model(x), target)
        (scale * loss).backward()
        return loss

    def step(self, scale: float = 1.0):
        loss = self.backward(scale)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.reader.read(self.place, loss)

    def host_grad_norm(self) -> torch.Tensor:
        grads = [self.model[2].weight.grad.flatten(), self.model[2].bias.grad]
        return torch.cat(grads).norm()


def test_the_gradient_norm_is_that_of_the_places_own_host_parameters():
    """After accumulation, just before the optimizer steps; not the grafts', and nobody else's."""
    bench = Bench()
    bench.backward()
    bench.backward()
    expected = bench.host_grad_norm()
    bench.optimizer.step()
    torch.testing.assert_close(bench.reader.read(bench.place, 0.0).gradient_norm, expected)


def test_where_the_optimizer_rested_the_norm_says_so():
    bench = Bench()
    bench.step()
    loss = bench.backward()
    assert float(bench.reader.read(bench.place, loss).gradient_norm) == -1.0


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_gradient_scaler_does_not_show(is_fused):
    seen = []
    for scale in (1.0, 1024.0):
        bench = Bench(make_optimizer=lambda parameters: AdamW(parameters, lr=0.01, fused=is_fused))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        bench.backward(scale)
        scaler.scale(torch.ones(()))
        scaler.step(bench.optimizer)
        scaler.update()
        seen.append(float(bench.reader.read(bench.place, 0.0).gradient_norm))
    assert seen[0] == seen[1] > 0


def test_a_host_without_gradients_has_norm_zero():
    bench = Bench()
    for parameter in bench.model[2].parameters(recurse=False):
        parameter.requires_grad_(False)
    assert float(bench.step().gradient_norm) == 0.0


def test_weights_are_a_bounded_evenly_spaced_sample_after_the_step():
    bench = Bench(make_optimizer=lambda parameters: SGD(parameters, lr=0.1))
    weights = bench.step().weights
    everything = torch.cat([bench.model[2].weight.detach().flatten(), bench.model[2].bias.detach()])
    index = torch.arange(MAX_WEIGHTS) * len(everything) // MAX_WEIGHTS
    assert torch.equal(weights, everything[index])


def test_of_few_weights_all_are_looked_at():
    model = wrapped(nn.Linear(3, 2), [""], seeds_per_layer=1)
    place = place_of(model, "")
    reader = SignalReader([place], covered_parameters(model), SGD(model.parameters()))
    expected = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
    assert torch.equal(reader.read(place, 0.0).weights, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_signals_are_float32_whatever_the_host_is(dtype):
    model = wrapped(nn.Linear(3, 2).to(dtype), [""], seeds_per_layer=1)
    place = place_of(model, "")
    blend_in(place, 0, 1, "drift_controlled")
    optimizer = SGD(model.parameters())
    reader = SignalReader([place], covered_parameters(model), optimizer)
    loss = model(torch.ones(1, 3, dtype=dtype)).sum()
    loss.backward()
    optimizer.step()
    seen = reader.read(place, loss)
    assert {seen.loss.dtype, seen.gradient_norm.dtype, seen.weights.dtype} == {torch.float32}
    assert seen.loss.shape == seen.gradient_norm.shape == ()
    assert not seen.loss.requires_grad


def test_a_place_where_nobody_looks_costs_no_norm():
    bench = Bench("fixed_ramp")
    assert not needs_signals(bench.place)
    assert float(bench.step().gradient_norm) == -1.0


def test_detached_it_looks_no_more():
    bench = Bench()
    bench.reader.detach()
    assert float(bench.step().gradient_norm) == -1.0


# Strategies in training: each changes a curve


def curve(strategy: str, lr: float = 1e-3, steps: int = 40, spikes: tuple[int, ...] = ()) -> list[float]:
    bench = Bench(strategy, lambda parameters: SGD(parameters, lr=lr))
    seen = []
    for step in range(steps):
        signals = bench.step(200.0 if step in spikes else 1.0)
        advance(bench.place, signals if needs_signals(bench.place) else None)
        seen.append(float(bench.place.state.alpha[0]))
    return seen


def test_in_training_performance_linked_is_ahead_of_the_fixed_ramp_while_the_loss_falls():
    fixed, linked = curve("fixed_ramp", lr=0.3), curve("performance_linked", lr=0.3)
    assert linked.index(1.0) < fixed.index(1.0)


def test_in_training_drift_control_waits_for_a_fast_host_and_not_for_a_slow_one():
    assert curve("drift_controlled", lr=1e-3) == curve("fixed_ramp", lr=1e-3)
    fast = curve("drift_controlled", lr=3.0)
    assert 1.0 not in fast[: 1 + curve("fixed_ramp").index(1.0)]


def test_in_training_the_gate_waits_out_spikes_of_the_gradient():
    spikes = (4, 5, 6, 12)
    gated, fixed = curve("grad_norm_gated", spikes=spikes), curve("fixed_ramp", spikes=spikes)
    assert gated.index(1.0) == fixed.index(1.0) + len(spikes)
    assert curve("grad_norm_gated") == curve("fixed_ramp")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reading_signals_changes_no_bit_of_the_host(strategy):
    """At alpha 0, next to a run that reads none."""
    weights = []
    for reads in (True, False):
        bench = Bench(strategy, lambda parameters: AdamW(parameters, lr=1e-2))
        transition(bench.place, Command("2", 0, State.CANCELLED))
        if not reads:
            bench.reader.detach()
        torch.manual_seed(3)
        for _ in range(5):
            bench.step()
        weights.append((bench.model[2].weight.detach().clone(), torch.get_rng_state()))
    assert torch.equal(weights[0][0], weights[1][0])
    assert torch.equal(weights[0][1], weights[1][1])
