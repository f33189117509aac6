"""Bytes of seeds and grafts, by really building them, and time for each layer with seeds.

Seconds are the processor's, of one thread, so that others on the machine do not count.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import esper
from benchmarks.scaling.counting import INPUTS, session_of
from esper.kasmina.host.anchoring import places
from esper.runtime.training.ranks import checksums

SHAPES = ((256, 1), (256, 64), (1024, 64), (4096, 1024))
LAYERS = (10, 30, 100, 300)
HIDDEN = 64


class Beside(nn.Module):
    """So many layers of four channels beside each other."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        total = x
        for layer in self.layers:
            total = total + layer(x)
        return total


def state(channels: int, seeds: int) -> dict[str, int]:
    """Bytes of a place's seeds: their columns, and what they sense."""
    [place] = places(esper.wrap(nn.Sequential(nn.Linear(4, channels)), esper.GrowthConfig(layers={"0": seeds})))
    sensed = [*place.telemetry.buffers(), place.telemetry.turn]
    return {
        "channels": channels,
        "seeds": seeds,
        "columns": sum(one.nbytes for one in place.state.buffers()),
        "sensed": sum(one.nbytes for one in sensed),
    }


def graft(width: int) -> dict[str, int]:
    """Parameters of a graft on all channels of a layer."""
    model = esper.wrap(
        nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)),
        esper.GrowthConfig(layers={"2": 1}, objective="none", trial="live", round_fraction=0.5, max_growth=9.0),
    )
    session = session_of(model)
    session.step(INPUTS)
    session.after_epoch()
    assert session.germinate("2", "all", "bottleneck_mlp", settings={"hidden": HIDDEN}).accepted
    session.after_epoch()
    [place] = [place for place in places(model) if place.layer_id == "2"]
    return {"width": width, "hidden": HIDDEN, "parameters": place.arena.slots.numel()}


def time_of_a_layer(layers: int) -> dict[str, Any]:
    """Seconds of a model of so many layers, with a sleeping seed in each and without any."""
    torch.manual_seed(0)
    bare = Beside(layers)
    optimizer = torch.optim.AdamW(bare.parameters(), 1e-4)

    def plain() -> None:
        bare(INPUTS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    begun = time.process_time()
    model = esper.wrap(Beside(layers), esper.GrowthConfig(layers={"layers.*": 1}))
    wrapped = time.process_time() - begun
    begun = time.process_time()
    session = session_of(model)
    begins = time.process_time() - begun
    turns = 8

    def many(step: Callable[[], object]) -> float:
        begun = time.process_time()
        for _ in range(turns):
            step()
        return (time.process_time() - begun) / turns

    many(lambda: session.step(INPUTS))
    session.after_epoch()
    pairs, boundaries = [], []
    for _ in range(3):
        pairs.append((many(plain), many(lambda: session.step(INPUTS))))
        begun = time.process_time()
        session.after_epoch()
        boundaries.append(time.process_time() - begun)
    return {
        "layers": layers,
        "wrapping s": round(wrapped, 4),
        "session s": round(begins, 4),
        "bare step s": round(median(one for one, _ in pairs), 5),
        "more for a step s": round(median(ours - one for one, ours in pairs), 5),
        "boundary s": round(median(boundaries), 4),
    }


def checksum_seconds(parameters: int = 2**22) -> float:
    """Seconds of this processor for the checksum of so many parameters, for each billion of them."""
    weights, found = torch.zeros(parameters), []
    for _ in range(5):
        begun = time.process_time()
        checksums([("weights", weights)])
        found.append(time.process_time() - begun)
    return median(found) * 1e9 / parameters


def measure() -> dict[str, Any]:
    """All of it."""
    return {
        "state": [state(channels, seeds) for channels, seeds in SHAPES],
        "graft": [graft(width) for width in (64, 768)],
        "layers": [time_of_a_layer(layers) for layers in LAYERS],
        "checksum s for a billion parameters": round(checksum_seconds(), 2),
    }
