"""A place by itself, for tests that need no host."""

import torch

from esper.blueprints.blueprint import Ports
from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.strategies import GraftSignals
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place
from esper.kasmina.places.site import Site

PORTS = Ports(6, 11)


def lone_place(ports: Ports = PORTS, num_seeds: int = 4, dtype=torch.float32, **config) -> Place:
    """Called ``"fc"``; 11 channels and 4 seeds make chunks of 2, 3, 3 and 3."""
    site = Site("fc", "layer", ports, Geometry(), ("fc",))
    return Place(site, num_seeds, 0, torch.zeros(1, dtype=dtype), GrowthConfig(**config))


def germinate(place: Place, seed_id, lifecycle: int, *, strategy="fixed_ramp", ramp_steps=10, **settings) -> None:
    command = Command(
        place.layer_id,
        seed_id,
        State.GERMINATED,
        blueprint="bottleneck_mlp",
        settings=settings,
        strategy=strategy,
    )
    transition(place, command, birth=Birth(lifecycle, ramp_steps))


def blend_in(place: Place, seed_id, lifecycle: int, strategy: str, ramp_steps: int = 10) -> None:
    """Take a seed to the first step of GRAFTING."""
    germinate(place, seed_id, lifecycle, strategy=strategy, ramp_steps=ramp_steps, hidden=2)
    for target in (State.TRAINING, State.GRAFTING):
        transition(place, Command(place.layer_id, seed_id, target))


def signals(loss: float = 1.0, gradient_norm: float = 1.0, weights=(1.0, -1.0, 0.5)) -> GraftSignals:
    return GraftSignals(torch.tensor(loss), torch.tensor(gradient_norm), torch.tensor(weights))
