"""``torch.func`` over a grown model: per-sample gradients, Jacobians, vmap."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from esper.contracts.lifecycle import State
from esper.kasmina.places.place import Place
from tests.kasmina.growing import grow, mlp, place_of, release, wrapped


def grown(reads: str, num_seeds: int) -> tuple[nn.Module, Place]:
    """Live grafts on fossils."""
    model = wrapped(mlp(6, 8, 8, 4), {"2": num_seeds})
    place = place_of(model, "2")
    for state in (State.FOSSILIZED, State.FINE_TUNING):
        for seed in range(num_seeds):
            grow(place, seed, state, hidden=3, reads=reads)
            if state is State.FOSSILIZED:
                release(place, seed)
    return model, place


def loss_of(model: nn.Module):
    buffers = dict(model.named_buffers())
    return lambda weights, one: functional_call(model, (weights, buffers), (one[None],)).square().mean()


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("num_seeds", [1, 4])
@pytest.mark.parametrize("reads", ["input", "chunk"])
def test_per_sample_gradients_are_those_of_each_sample(reads, num_seeds, is_training):
    model, place = grown(reads, num_seeds)
    model.train(is_training)
    weights, loss, x = dict(model.named_parameters()), loss_of(model), torch.randn(5, 6)
    before = {name: tensor.clone() for name, tensor in place.named_buffers()}
    found = vmap(grad(loss), (None, 0))(weights, x)
    for name, weight in weights.items():
        expected = torch.stack([torch.autograd.grad(loss(weights, one), weight)[0] for one in x])
        torch.testing.assert_close(found[name], expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in place.named_buffers() if "telemetry" not in name)


@pytest.mark.parametrize("reads", ["input", "chunk"])
def test_a_mapped_forward_has_the_outputs_and_gradients_of_a_batch(reads):
    model, place = grown(reads, 4)
    x = torch.randn(5, 6)
    results = []
    for forward in (model, lambda x: vmap(lambda one: model(one[None])[0])(x)):
        output = forward(x)
        grads = torch.autograd.grad(output.square().sum(), [*model.parameters()])
        results.append([output.detach(), *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert not place.state.fault.any()


@pytest.mark.parametrize("reads", ["input", "chunk"])
def test_jacobians_are_those_of_the_grown_model(reads):
    model, _ = grown(reads, 4)
    x = torch.randn(6)
    found = jacrev(lambda x: model(x[None])[0])(x)
    leaf = x.clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(model(leaf[None])[0, index], leaf)[0] for index in range(4)])
    torch.testing.assert_close(found, expected)


def test_a_fault_is_contained_there_too_and_raises_no_flag():
    """Transforms must be free of side effects, so nobody is told; the host stays finite all the same."""
    model, place = grown("input", 4)
    bare = mlp(6, 8, 8, 4)
    for graft in place.arena.live:
        place.arena.params_of(graft).detach().fill_(math.nan)
    place.arena.fossil_bytes(0).fill_(math.nan)
    x = torch.randn(5, 6)
    weights = {name: weight for name, weight in model.named_parameters() if "_esper" not in name}
    found = vmap(grad(loss_of(model)), (None, 0))(dict(model.named_parameters()), x)
    expected = vmap(grad(loss_of(bare)), (None, 0))(dict(bare.named_parameters()), x)
    for name in weights:
        torch.testing.assert_close(found[name], expected[name])
    assert not place.state.fault.any()


def test_a_sleeping_model_in_training_is_transformed_as_the_bare_one():
    """Its seeds see nothing of it, though one pass in eight is looked at otherwise."""
    model = wrapped(mlp(6, 8, 4), {"0": 4})
    weights, x = dict(model.named_parameters()), torch.randn(5, 6)
    for _ in range(16):
        vmap(grad(loss_of(model)), (None, 0))({n: w for n, w in weights.items() if w.numel()}, x)
