"""The loop over seeds that Kasmina must equal: one graft after the other, with nothing clever about it."""

import torch
from torch import Tensor

from esper.contracts.lifecycle import TRAINABLE, State
from esper.kasmina.layer import Place


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
