"""Grafts by hand, for tests: the same transitions that a session makes, without a session."""

from itertools import pairwise

import torch
from torch import nn

from esper.blueprints.widen import Widen
from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.layer import Place
from esper.kasmina.host.wrapping import wrap
from esper.kasmina.places.lifecycle import Birth, transition

PATH = (
    State.GERMINATED,
    State.TRAINING,
    State.GRAFTING,
    State.STABILIZATION,
    State.EVALUATING,
    State.FINE_TUNING,
    State.FOSSILIZED,
)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them; ``mlp(6, 8, 4)`` has the steps 0, 1, 2."""
    torch.manual_seed(sum(widths))
    steps: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        steps += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def wrapped(model: nn.Module, layers, **config) -> nn.Module:
    return wrap(model, GrowthConfig(layers=layers, **config))


def place_of(model: nn.Module, layer_id: str) -> Place:
    return next(place for place in places(model) if place.layer_id == layer_id)


def grow(
    place: Place,
    seed_id="all",
    until: State = State.FINE_TUNING,
    *,
    blueprint: str | None = None,
    lifecycle: int | None = None,
    alpha: float = 1.0,
    scale: float | None = 0.3,
    **settings,
) -> int:
    """Take a seed through its lifecycle; returns the lifecycle's number.

    Args:
        until: the state to stop in.
        blueprint: its name; None widens where that is possible, and takes a bottleneck elsewhere, on what it can read.
        lifecycle: its number; None takes the next free one.
        alpha: once it is live.
        scale: the graft's parameters are drawn from N(0, scale^2); None leaves them as born.
    """
    if lifecycle is None:
        fossils = [graft for group in place.arena.fossils for graft in group]
        numbers = [*place.arena.grafts, *(graft.lifecycle for graft in fossils)]
        lifecycle = 1 + max(numbers, default=0)
    if blueprint is None and Widen().misfit(place.ports_of(Widen())) is None:
        blueprint = "widen"
    elif blueprint is None:
        blueprint, settings = "bottleneck_mlp", {"reads": "input" if place.ports.inputs else "chunk"} | settings
    for target in PATH[: PATH.index(until) + 1]:
        command = Command(place.layer_id, seed_id, target, blueprint=blueprint, settings=settings)
        transition(place, command, birth=Birth(lifecycle, ramp_steps=4))
        if target is State.GRAFTING:
            place.state.alpha[place.state.lifecycle_id == lifecycle] = alpha
            if scale is not None:
                params = place.arena.params_of(place.arena.grafts[lifecycle])
                generator = torch.Generator().manual_seed(lifecycle)
                draw = torch.randn(params.shape, generator=generator) * scale
                with torch.no_grad():
                    params.copy_(draw)
    return lifecycle


def release(place: Place, seed_id="all") -> None:
    """Back to DORMANT after an outcome."""
    transition(place, Command(place.layer_id, seed_id, State.DORMANT))


def remove(place: Place, seed_id="all") -> None:
    """Cull a live graft and take it out at once."""
    lifecycle = transition_to(place, seed_id, State.CULLED)
    place.arena.remove(lifecycle)
    release(place, seed_id)


def transition_to(place: Place, seed_id, target: State) -> int:
    first = 0 if seed_id == "all" else seed_id
    lifecycle = int(place.state.lifecycle_id[first])
    transition(place, Command(place.layer_id, seed_id, target))
    return lifecycle


def host_grads(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gradients of the host's parameters, by name."""
    named = ((name, p.grad) for name, p in model.named_parameters() if "_esper" not in name)
    return {name: grad.clone() for name, grad in named if grad is not None}
