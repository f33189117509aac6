"""A layer of which some seeds have live grafts."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import place_named, wrap
from esper.kasmina.places.lifecycle import Birth, transition
from esper.kasmina.places.place import Place

PATH = (State.GERMINATED, State.TRAINING, State.GRAFTING)


class Planting(NamedTuple):
    """What grows in a layer.

    Args:
        channels: of the layer.
        seeds: that share them evenly.
        active: seeds with a graft.
        blueprint: of the grafts.
        settings: of the blueprint.
        inputs: features that the layer reads.
    """

    channels: int
    seeds: int
    active: int
    blueprint: str = "bottleneck_mlp"
    settings: Mapping[str, Any] = MappingProxyType({"hidden": 16, "reads": "chunk"})
    inputs: int = 8

    @property
    def grown(self) -> tuple[int, ...]:
        """The seeds with grafts, spread evenly."""
        return tuple(index * self.seeds // self.active for index in range(self.active))


def plant(
    place: Place, seeds: Sequence[int], blueprint: str, settings: Mapping[str, Any], *, lifecycle: int = 1
) -> None:
    """Grafts at half their strength, none of them zero; ``lifecycle`` is the first of their lifecycles' numbers."""
    for target in PATH:
        command = Command(place.layer_id, tuple(seeds), target, blueprint=blueprint, settings=dict(settings))
        transition(place, command, birth=Birth(lifecycle, ramp_steps=1))
    place.state.alpha[list(seeds)] = 0.5
    with torch.no_grad():
        place.arena.slots.normal_(0, 0.1)


def planted(planting: Planting, device: torch.device, dtype: torch.dtype) -> Place:
    """The place of such a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(planting.inputs, planting.channels)).to(device, dtype)
    wrap(model, GrowthConfig(layers={"0": planting.seeds}, telemetry_rows=0))
    place = place_named(model, "0")
    plant(place, planting.grown, planting.blueprint, planting.settings)
    return place


def grow(place: Place, y: Tensor, x: Tensor | None = None) -> Tensor:
    """What all grafts make of a new output, faults noted; ``x`` is what those read that do not read their own chunk."""
    read = y if x is None else x
    return place.arena.add_to(y, read, place.state, place.site.geometry, raises_faults=True, may_write_over=True)
