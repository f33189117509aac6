"""The loop over seeds that Kasmina must equal: one graft after the other, with nothing clever about it."""

import torch
from torch import Tensor

from esper.contracts.lifecycle import TRAINABLE, State
from esper.kasmina.grafts.strategies import MAX_SPEED, GraftSignals
from esper.kasmina.host.layer import Place


def grown_by_loop(place: Place, y: Tensor, x: Tensor) -> Tensor:
    """The host's output ``y`` with every fossil and live graft of a place; ``x`` is the place's input."""
    for group, bytes_GN in zip(place.arena.fossils, _fossil_bytes(place), strict=True):
        for graft, params in zip(group, bytes_GN, strict=True):
            y = _added(graft, params, 1.0, y, x)
    for graft in place.arena.live:
        seed, params = graft.seeds[0], place.arena.params_of(graft)
        if State(int(place.state.lifecycle[seed])) not in TRAINABLE or not graft.blueprint.is_trainable:
            params = params.detach()
        y = _added(graft, params, float(place.state.alpha[seed]), y, x)
    return y


def _added(graft, params: Tensor, alpha: float, y: Tensor, x: Tensor) -> Tensor:
    first, end = graft.channels
    chunk = y[..., first:end]
    named, start = {}, 0
    for name, shape in graft.blueprint.shapes(graft.ports).items():
        size = torch.Size(shape).numel()
        named[name] = params[start : start + size].reshape(shape)
        start += size
    delta = graft.blueprint.delta(named, chunk if graft.blueprint.reads == "chunk" else x)
    return torch.cat([y[..., :first], chunk + alpha * delta, y[..., end:]], dim=-1)


def _fossil_bytes(place: Place) -> list[Tensor]:
    return [place.arena.fossil_bytes(index) for index in range(len(place.arena.fossils))]


def advanced_by_loop(place: Place, signals: GraftSignals) -> None:
    """One training step of the clocks, alphas and memories of a place."""
    state, memory = place.state, place.arena.memory
    speeds = [1.0] * state.num_seeds
    for graft in place.arena.live:
        if not graft.is_rising or not graft.strategy.needs_signals:
            continue
        row = memory[graft.slot, : graft.strategy.memory]
        speed, new = graft.strategy.speed(row.clone().unsqueeze(0), signals)
        value = float(speed) if torch.isfinite(speed) else 0.0
        for seed in range(*graft.seeds):
            speeds[seed] = min(max(value, 0.0), MAX_SPEED)
        row.copy_(torch.where(torch.isfinite(new[0]), new[0], row))
    for seed, speed in enumerate(speeds):
        state.steps_in_state[seed] += 1
        ramp = max(1, int(state.ramp_steps[seed]))
        match State(int(state.lifecycle[seed])):
            case State.GRAFTING:
                state.progress[seed] += speed
                state.alpha[seed] = (state.progress[seed] / ramp).clamp(max=1.0)
            case State.CULLED | State.CANCELLED:
                fall = 1 - (state.steps_in_state[seed] / torch.tensor(ramp)).clamp(max=1.0)
                state.alpha[seed] = torch.minimum(state.alpha[seed], fall)
