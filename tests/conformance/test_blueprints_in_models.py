"""Every blueprint in real models of every layout it grows on: four seeds of uneven chunks at the middle layer.

The identity is shown for all of them; the rest for each blueprint on one layout, and on all where it looks across.
"""

import pytest
import torch
from torch import nn

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import CATALOGUE, CONTROLS, make_blueprint
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import wrap
from esper.kasmina.places.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import GrowthConfig, grow, host_grads, mlp, place_of
from tests.kasmina.oracle import grown_by_loop

KINDS = CATALOGUE | CONTROLS
ACROSS = {"conv_bottleneck", "depthwise_conv", "mini_attention", "placebo", "sliding_conv", "squeeze_excite"}
"""Those that look at more than one vector (``test_blueprints`` shows that no other does)."""
POSITIONS = {"features": (), "tokens": (5,), "signal": (9,), "image": (6, 5)}
SIZE = {"hidden": 3, "rank": 3, "kernels": 2, "head_width": 2, None: None}


def cases(is_wanted) -> list[tuple[str, str, str]]:
    """Every blueprint on every layout, reading whatever it can."""
    return [
        (name, layout, reads)
        for name, kind in sorted(KINDS.items())
        for layout in sorted(kind.layouts)
        for reads in ("chunk", "input")
        if is_wanted(kind) and not (kind.keeps_width and reads == "input")
    ]


def some(is_wanted) -> list[tuple[str, str, str]]:
    """Of those the ones with which a layout may matter, else a quarter: every blueprint, layout and way of reading."""
    turns = {name: turn for turn, name in enumerate(sorted(KINDS))}
    return [
        (name, layout, reads)
        for name, layout, reads in cases(is_wanted)
        if name in ACROSS or layout == list(POSITIONS)[(turns[name] + (reads == "input")) % 4]
    ]


def each(chosen):
    return pytest.mark.parametrize(("name", "layout", "reads"), chosen)


def host(layout: str) -> nn.Module:
    torch.manual_seed(0)
    if layout in ("features", "tokens"):
        return mlp(6, 8, 11, 4)
    convolution, pool = {"signal": (nn.Conv1d, nn.AdaptiveAvgPool1d), "image": (nn.Conv2d, nn.AdaptiveAvgPool2d)}[
        layout
    ]
    middle = [convolution(6, 8, 3), nn.ReLU(), convolution(8, 11, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*middle, pool(1), nn.Flatten(), nn.Linear(11, 4))


def batch(layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = (16, *POSITIONS[layout], 6) if layout in ("features", "tokens") else (16, 6, *POSITIONS[layout])
    return torch.randn(shape, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def grown(name: str, layout: str, reads: str, scale: float | None = None) -> nn.Module:
    """All four seeds in FINE_TUNING, at full alpha."""
    model = wrap(host(layout), GrowthConfig(layers={"2": 4}), example=batch(layout)[0])
    place, size = place_of(model, "2"), KINDS[name].size
    assert place.ports[:3] == (8, 11, layout)
    for seed in range(4):
        grow(place, seed, blueprint=name, scale=scale, reads=reads, **({size: SIZE[size]} if size else {}))
    return model


def run(model: nn.Module, layout: str) -> dict[str, torch.Tensor]:
    x, target = batch(layout)
    x.requires_grad_()
    output = model(x)
    logits = output.mean(1) if layout == "tokens" else output
    nn.functional.cross_entropy(logits, target).backward()
    return {"output": output.detach(), "dx": x.grad, **host_grads(model)}


@each(cases(lambda kind: kind.starts_at_zero))
def test_at_birth_it_is_the_exact_identity(name, layout, reads):
    """Outputs and host gradients, to the bit, at full alpha."""
    seen, expected = run(grown(name, layout, reads), layout), run(host(layout), layout)
    assert [key for key in expected if not torch.equal(seen[key], expected[key])] == []


@pytest.mark.parametrize("layout", POSITIONS)
def test_a_blueprint_that_does_not_start_at_zero_would_be_seen(layout):
    """Negative control."""
    seen, expected = run(grown("random_frozen", layout, "input"), layout), run(host(layout), layout)
    assert not torch.equal(seen["output"], expected["output"])
    assert not torch.equal(seen["dx"], expected["dx"])


def tensors_before_and_after(model: nn.Module, layout: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every tensor of every graft, before and after ten steps."""

    def tensors() -> list[torch.Tensor]:
        arena = place_of(model, "2").arena
        named = [graft.unflatten(arena.params_of(graft).detach()) for graft in arena.live]
        return [value.clone() for graft in named for value in graft.values()]

    before = tensors()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SlotOptimizer(places(model), optimizer, lambda: 1e-2, weight_decay=0.0)
    for _ in range(10):
        run(model, layout)
        optimizer.step()
        optimizer.zero_grad()
    return list(zip(before, tensors(), strict=True))


@each(some(lambda kind: kind.is_trainable))
def test_every_tensor_moves_within_ten_steps_of_birth(name, layout, reads):
    """The birth check: a tensor that cannot receive gradient is dead weight."""
    pairs = tensors_before_and_after(grown(name, layout, reads), layout)
    assert len(pairs) == 4 * len(make_blueprint(name, {}).shapes(Ports(3, 3, layout)))
    assert not any(torch.equal(before, after) for before, after in pairs)


@each(some(lambda kind: not kind.is_trainable))
def test_what_is_not_trainable_never_moves(name, layout, reads):
    pairs = tensors_before_and_after(grown(name, layout, reads), layout)
    assert all(torch.equal(before, after) for before, after in pairs)


@each(some(lambda kind: True))
def test_a_batch_of_grafts_equals_them_one_by_one(name, layout, reads):
    place = place_of(grown(name, layout, reads, scale=0.5), "2")
    results = []
    for function in (
        lambda y, x: place.arena.add_to(y, x, place.state, place.site.geometry, raises_faults=True),
        lambda y, x: grown_by_loop(place, y, x),
    ):
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(5, *POSITIONS[layout], 8, generator=generator).requires_grad_()
        y = torch.randn(5, *POSITIONS[layout], 11, generator=generator).requires_grad_()
        output = function(y, x)
        has_moving = KINDS[name].is_trainable and name != "noop"
        leaves = [y, *([x] if reads == "input" else []), *([place.arena.slots] if has_moving else [])]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert float((one - other).detach().norm() / other.detach().norm()) < 1e-5
