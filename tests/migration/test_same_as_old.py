"""The old and the new layer with one seed and one chunk, of the same bytes."""

import copy

import pytest
import torch

from benchmarks.rollout_kit.legacy import RAMP_STEPS, difference, pair, ratio


@pytest.mark.parametrize("channels", [3, 48])
def test_dormant_they_compute_the_same_to_the_bit(channels):
    old, new = pair(channels, 0)
    x = torch.randn(5, channels)
    assert torch.equal(old(x), new(x))


@pytest.mark.parametrize("channels", [3, 48])
def test_through_the_ramp_they_are_equal_within_rounding(channels):
    x = torch.randn(7, channels)
    assert max(difference(channels, steps, x) for steps in range(RAMP_STEPS + 1)) < 1e-6


def test_gradients_of_host_and_graft_are_equal_within_rounding_too():
    old, new = pair(12, RAMP_STEPS // 2)
    x = torch.randn(9, 12)
    for layer in (old, new):
        layer(x).square().sum().backward()
    (place,) = new._esper
    grads = place.arena.grafts[1].unflatten(place.arena.slots.grad)
    for name, parameter in old.graft.items():
        torch.testing.assert_close(grads[name], parameter.grad)
    torch.testing.assert_close(new.weight.grad, old.base_layer.weight.grad)


def test_other_bytes_are_seen_as_other():
    old, new = pair(12, RAMP_STEPS // 2)
    x = torch.randn(9, 12)
    changed = copy.deepcopy(old)
    changed.step += 1
    assert torch.allclose(old(x), new(x))
    assert not torch.allclose(changed(x), new(x))


def test_the_measurement_sees_that_twice_the_work_takes_twice_as_long():
    x = torch.randn(200, 200)
    found = ratio(lambda: x @ x, lambda: (x @ x) @ x, blocks=6)
    assert 1.5 < found["median"] < 2.6
