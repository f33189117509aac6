"""Observations to decide on."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.reports import FieldReport, Observation, PlaceReport, SeedReport


def place(layer_id: str, kind: str = "layer", host_parameters: int = 100, *, num_seeds: int = 4, **changes: Any):
    """A dormant place with 64 inputs and 10 outputs."""
    values = {"states": (0,) * num_seeds, "is_under_embargo": False, "inputs": 64, "outputs": 10} | changes
    bounds = values.pop("bounds", None) or bounds_of(values["outputs"], len(values["states"]))
    return PlaceReport(layer_id=layer_id, kind=kind, host_parameters=host_parameters, bounds=bounds, **values)


def bounds_of(channels: int, num_seeds: int) -> tuple[int, ...]:
    """First channel of every chunk, and the end."""
    return tuple(seed * channels // num_seeds for seed in range(num_seeds + 1))


def sensed(num_seeds: int = 4, *, variance=1.0, inactive=0.5, correlation=0.2, gradient=1.0) -> SeedReport:
    """A report of equal chunks; a list instead of a number gives a whole column."""

    def column(value):
        return value if value is None or isinstance(value, list) else [value] * num_seeds

    return SeedReport(column(variance), column(inactive), column(correlation), column(gradient))


def busy(one: PlaceReport) -> PlaceReport:
    """The same place with its first seed in TRAINING."""
    return replace(one, states=(2, *one.states[1:]))


def report(blueprint: str = "bottleneck_mlp", outcome: str = "CULLED", layer_id: str = "0", **twin: Any) -> FieldReport:
    """A finished lifecycle; ``twin`` is what its arm measured against the twin."""
    return FieldReport(
        lifecycle=1,
        layer_id=layer_id,
        seed_id="all",
        blueprint=blueprint,
        settings={},
        strategy="fixed_ramp",
        trial="round",
        parameters=10,
        born_step=1,
        ended_step=2,
        outcome=outcome,
        reason="lost_round",
        gates={"twin": twin} if twin else {},
    )


@dataclass(frozen=True)
class Pooled(BottleneckMLP):
    """Has as many weights as a dense graft and takes a tenth of the multiply-adds."""

    id: ClassVar[str] = "pooled"

    def multiply_adds(self, ports: Ports) -> int:
        return self.num_parameters(ports) // 10


PLACES = (
    place("0", "layer", 520),
    place("2", "layer", 72, inputs=8, outputs=8),
    place("2:4", "span", 162, inputs=8, num_seeds=1),
    place("", "model", 682, num_seeds=1),
    place("0:2", "span", 592, outputs=8, num_seeds=1),
)
"""Of a small MLP without telemetry."""

STALLED = (1.0, 0.9, 0.8, 0.8, 0.8, 0.8)
FALLING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
NOW = Observation(
    step=80,
    planned_steps=1000,
    epoch=6,
    train_losses=FALLING,
    select_losses=STALLED,
    places=PLACES,
    rounds_done=0,
    host_parameters=682,
    grown_parameters=0,
)
"""Inside the growth window of a run that has stalled."""
