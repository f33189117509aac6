"""How much of what a graft adds depends on its input."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from esper.kasmina.places.variation import Variation
from tests.kasmina.growing import grow, mlp, place_of, wrapped


def affine(scale: float, shift: float) -> tuple[nn.Module, Variation, nn.Module]:
    """A layer of 4 channels whose graft adds ``scale * y + shift``, and what watches it."""
    model = wrapped(nn.Sequential(nn.Identity(), nn.Linear(4, 4)), ["1"])
    layer = model[1]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
        layer.bias.zero_()
    place = place_of(model, "1")
    number = grow(place, blueprint="affine", scale=None)
    params = place.arena.grafts[number].unflatten(place.arena.params_of(place.arena.grafts[number]))
    with torch.no_grad():
        params["scale"].fill_(scale)
        params["shift"].fill_(shift)
    return model, Variation(place, number), layer


@pytest.fixture
def x():
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    return (x - x.mean(0)) / x.std(0, correction=0)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.0, 2.0), (1.0, 1.0), (0.1, 1.0), (-2.0, 1.0)])
def test_is_the_share_of_the_mean_square_that_is_variance(scale, shift, x):
    model, variation, _ = affine(scale, shift)
    with variation:
        model.eval()(x)
    assert variation.share == pytest.approx(scale**2 / (scale**2 + shift**2), abs=1e-5)


def test_does_not_depend_on_the_batches(x):
    model, variation, _ = affine(0.5, 1.0)
    with variation:
        for part in x.split([1, 130, 269]):
            model.eval()(part.view(1, -1, 4))  # nor on other axes than the channels'
    assert variation.share == pytest.approx(0.2, abs=1e-5)


@pytest.mark.parametrize("nothing", ["no forward pass", "zero", "nan"])
def test_of_nothing_is_missing(nothing, x):
    model, variation, _ = affine(0.0, float("nan") if nothing == "nan" else 0.0)
    with variation:
        if nothing != "no forward pass":
            model.eval()(x)
    assert variation.share is None


def test_watches_only_inside_and_changes_nothing(x):
    model, variation, _ = affine(1.0, 1.0)
    before = model.eval()(x)
    with variation:
        inside = model(x)
    share = variation.share
    after = model(x + 100.0)
    assert torch.equal(before, inside)
    assert variation.share == share
    assert not torch.equal(after, inside)


def test_tells_grafts_apart_that_are_computed_together(x):
    model = wrapped(mlp(4, 6), {"0": 2})
    place = place_of(model, "0")
    one, other = (grow(place, seed, blueprint="affine", scale=None, lifecycle=seed + 1) for seed in (0, 1))
    arena = place.arena
    with torch.no_grad():
        arena.params_of(arena.grafts[one]).copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
        arena.params_of(arena.grafts[other]).copy_(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    with Variation(place, one) as first, Variation(place, other) as second:
        model.eval()(x)
    assert first.share == 0.0
    assert second.share is not None
    assert second.share > 0.5


@pytest.mark.filterwarnings(  # about dynamo's own doings while it traces
    r"ignore:.* should not be instantiated\. Methods on autograd functions are all static:DeprecationWarning"
)
@torch.no_grad()
def test_a_compiled_model_is_watched_too_and_not_compiled_anew(x):
    frames = CompileCounter()
    model, variation, _ = affine(1.0, 1.0)
    model.compile(backend=frames)
    expected = model.eval()(x)
    compiled = frames.frame_count
    with variation:
        assert torch.equal(model(x), expected)
    assert variation.share == pytest.approx(0.5, abs=1e-5)
    model(x)
    assert frames.frame_count == compiled > 0
