"""Grafts are written into what nobody else has: whoever has a tensor keeps what it was."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import esper
from esper.evaluation.bench.planted import plant
from esper.kasmina.host.wrapping import place_named
from esper.kasmina.kernels.grafts.owning import fewest_references, is_nobody_elses

launch = pytest.importorskip("esper.kasmina.kernels.grafts.launch", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEPT: list[torch.Tensor] = []


def residual(y, x):
    return x + y


def twice_the_same(y, x):
    return y + y


def hook_that_keeps(y, x):
    y.register_hook(lambda grad: KEPT.append(grad))
    return F.gelu(y)


def hook_that_keeps_a_view(y, x):
    y.register_hook(lambda grad: KEPT.append(grad[:1]))
    return F.gelu(y)


def retained(y, x):
    y.retain_grad()
    KEPT.append(y)
    return F.gelu(y)


def plain(y, x):
    return F.gelu(y)


def view(y, x):
    return F.gelu(y.view(-1, 2, 32))


def view_of_a_sum(y, x):
    return x.view(-1, 2, 32) + y.view(-1, 2, 32)


def hook_that_keeps_behind_a_view(y, x):
    y = y.view(-1, 2, 32)
    y.register_hook(lambda grad: KEPT.append(grad))
    return F.gelu(y)


def expanded(y, x):
    return y.sum(0)


def in_place(y, x):
    return F.relu(y, inplace=True)


def split(y, x):
    one, other = y.chunk(2, -1)
    return one * other


OTHERS = (residual, hook_that_keeps, hook_that_keeps_a_view, hook_that_keeps_behind_a_view, view_of_a_sum, expanded)
"""Someone else has the gradient, or it has no memory of its own."""

NOBODY = (plain, view, twice_the_same, in_place, split, retained)


class Asks(torch.autograd.Function):
    """The identity, which notes whether its gradient is nobody else's."""

    found = False

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, *grads):
        Asks.found = is_nobody_elses(grads)
        return grads


@pytest.mark.parametrize("behind", [*OTHERS, *NOBODY])
def test_it_is_told_whether_a_gradient_is_nobody_elses(behind):
    x = torch.randn(6, 64, device=DEVICE, requires_grad=True)
    behind(Asks.apply(2 * x), x).pow(2).sum().backward()
    assert Asks.found is (behind in NOBODY)
    KEPT.clear()


def test_a_callers_gradient_is_the_callers():
    x, gradient = torch.randn(6, 64, device=DEVICE, requires_grad=True), torch.randn(6, 64, device=DEVICE)
    torch.autograd.grad(Asks.apply(2 * x), x, gradient)
    assert not Asks.found


def host(kind: str) -> nn.Sequential:
    """A layer with two groups of grafts in a few of its channels."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64) if kind == "linear" else nn.Conv2d(4, 64, 3, padding=1)
    model = esper.wrap(nn.Sequential(nn.Identity(), layer).to(DEVICE), esper.GrowthConfig(layers={"1": 16}))
    place = place_named(model, "1")
    plant(place, (2, 7), "bottleneck_mlp", {"hidden": 4, "reads": "chunk"})
    plant(place, (9,), "glu", {"hidden": 4, "reads": "chunk"}, lifecycle=3)
    return model


def passed(model, x, behind, kernels, monkeypatch) -> tuple[list[torch.Tensor], list[bool]]:
    """The output, all gradients and what a hook has kept; and which passes were written over."""
    written = []

    def spied(of, *args, **more):
        result = of(*args, **more)
        written.append(result[0].data_ptr() == args[0].data_ptr())
        return result

    with monkeypatch.context() as patched:
        patched.setenv("ESPER_KERNELS", kernels)
        for name in ("forward", "backward"):
            patched.setattr(launch, name, partial(spied, getattr(launch, name)))
        for parameter in model.parameters():
            parameter.grad = None
        leaf = x.clone().requires_grad_()
        out = behind(model(leaf), leaf)
        out.pow(2).sum().backward()
    kept = [one.grad if one.grad is not None else one.detach() for one in KEPT]
    KEPT.clear()
    grads = [one.grad for one in (leaf, *model.parameters()) if one.grad is not None]
    return [out.detach(), *grads, *kept], written


@pytest.mark.parametrize("behind", [*OTHERS, *NOBODY])
def test_a_layer_passes_on_what_its_twin_does(behind, monkeypatch):
    model, x = host("linear"), torch.randn(6, 64, device=DEVICE)
    expected, _ = passed(model, x, behind, "reference", monkeypatch)
    found, written = passed(model, x, behind, "triton", monkeypatch)
    assert len(found) == len(expected) >= 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert written == [True, True, behind in NOBODY, True]  # between two groups nobody has the gradient


def test_where_most_channels_have_grafts_there_is_a_new_output(monkeypatch):
    """It takes fewer bytes then."""
    for seeds, is_over in ((10, True), (11, False)):
        model = esper.wrap(nn.Sequential(nn.Linear(64, 64)).to(DEVICE), esper.GrowthConfig(layers={"0": 16}))
        plant(place_named(model, "0"), range(seeds), "affine", {})
        _, written = passed(model, torch.randn(6, 64, device=DEVICE), plain, "triton", monkeypatch)
        assert written == [is_over, is_over]


def test_channels_before_positions(monkeypatch):
    model, x = host("conv"), torch.randn(2, 4, 3, 3, device=DEVICE)
    expected, _ = passed(model, x, plain, "reference", monkeypatch)
    found, written = passed(model, x, plain, "triton", monkeypatch)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert written == [True] * 4


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant, monkeypatch):
    model, x = host("linear"), torch.randn(6, 64, device=DEVICE)

    expected, _ = passed(model, x, plain, "reference", monkeypatch)
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    F.gelu(checkpoint(model, leaf, use_reentrant=use_reentrant)).pow(2).sum().backward()
    found = [one.grad for one in (leaf, *model.parameters()) if one.grad is not None]
    for one, other in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_that_keeps_outputs_of_linear_layers(monkeypatch):
    """A dispatch mode has an output before Esper does."""
    kept = [torch.ops.aten.addmm.default, torch.ops.aten.mm.default]
    model, x = host("linear"), torch.randn(6, 64, device=DEVICE)
    expected, _ = passed(model, x, plain, "reference", monkeypatch)
    monkeypatch.setenv("ESPER_KERNELS", "triton")
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    context = partial(create_selective_checkpoint_contexts, kept)
    F.gelu(checkpoint(model, leaf, use_reentrant=False, context_fn=context)).pow(2).sum().backward()
    found = [one.grad for one in (leaf, *model.parameters()) if one.grad is not None]
    for one, other in zip(found, expected[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_references_are_counted_in_inference_mode_too():
    fewest_references.cache_clear()
    with torch.inference_mode():
        fewest_references()
        fewest_references(is_view=True)
    x = torch.randn(6, 64, device=DEVICE, requires_grad=True)
    plain(Asks.apply(2 * x), x).pow(2).sum().backward()
    assert Asks.found


def test_gradients_of_gradients_know_what_was_written_over(monkeypatch):
    model, x = host("linear"), torch.randn(6, 64, device=DEVICE)
    found = []
    for kernels in ("reference", "triton"):
        monkeypatch.setenv("ESPER_KERNELS", kernels)
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.gelu(model(leaf)).pow(2).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.pow(2).sum(), (leaf, model[1].weight)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_without_gradients(monkeypatch):
    model, x, found = host("linear").eval(), torch.randn(6, 64, device=DEVICE), []
    for kernels in ("reference", "triton"):
        monkeypatch.setenv("ESPER_KERNELS", kernels)
        for off in (torch.no_grad, torch.inference_mode):
            with off():
                found.append(model(x))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-5, atol=1e-5)
