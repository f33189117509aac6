"""Grafts that are there from the first step, as a control: is it worth anything that they come later?

The host is given its grafts before training, exported to standard modules, and trained as one network: one learning
rate, no gates, no twin. A graft begins as the exact identity, so that the first forward pass is the bare host's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import nn

from esper.contracts.commands import Command, SeedId
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.evaluation.controls import Setting, host_on
from esper.evaluation.row import Row
from esper.kasmina.host.export import export
from esper.kasmina.host.wrapping import place_named, traced, wrap
from esper.kasmina.places.lifecycle import Birth, transition
from esper.tasks.task import Task

JOURNEY = (
    State.GERMINATED,
    State.TRAINING,
    State.GRAFTING,
    State.STABILIZATION,
    State.EVALUATING,
    State.FINE_TUNING,
    State.FOSSILIZED,
    State.DORMANT,
)


@dataclass(frozen=True)
class Planting:
    """One graft to plant: where, and what."""

    layer_id: str
    seed_id: SeedId
    blueprint: str
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """The graft that a field report tells of."""
        return cls(report["layer_id"], report["seed_id"], report["blueprint"], dict(report["settings"]))


def planted(task: Task, plantings: Iterable[Planting], train_flops: int, setting: Setting) -> Row:
    """The host with all grafts from the start, trained with everything at once for ``train_flops``."""
    grafts = tuple(plantings)
    return host_on(replace(task, make_host=Planted(task, grafts, setting)), train_flops, setting)


@dataclass(frozen=True)
class Planted:
    """A :class:`~esper.tasks.task.HostFactory` of hosts with grafts as at birth, in standard modules."""

    task: Task
    plantings: tuple[Planting, ...]
    setting: Setting

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        model = sensed_host(self.task, self.setting, width_factor)
        for number, one in enumerate(self.plantings, start=1):
            place = place_named(model, one.layer_id)
            birth = Birth(number, ramp_steps=1)
            for state in JOURNEY:
                command = Command(one.layer_id, one.seed_id, state, blueprint=one.blueprint, settings=one.settings)
                transition(place, command, birth=birth)
        return export(model)


def sensed_host(task: Task, setting: Setting, width_factor: float = 1.0) -> nn.Module:
    """A new host with seeds, which have seen one batch: their places know what lies around the channels."""
    example = task.example(setting.batch_size)
    model = wrap(task.make_host(width_factor=width_factor), GrowthConfig(seed=setting.seed), example=example)
    model.eval()  # batch statistics stay as they are
    with traced(model), torch.no_grad():
        model(example)
    return model.train()
