"""How much: which blueprints fit a place, as large as the budgets of a run allow."""

from dataclasses import dataclass, replace
from typing import Any

from esper.blueprints.blueprint import Ports, Recipe
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import SeedId
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Observation, PlaceReport
from esper.tamiyo.chance import bound, no_chance, parameters_left
from esper.tamiyo.train_flops import largest_graft

BOUNDLESS: dict[str, Any] = {
    **dict.fromkeys(("capacity_per_round", "max_growth"), 1e6),
    **dict.fromkeys(("max_memory", "max_latency", "max_train_flops")),
}
"""Every budget, and the value at which it bounds nothing."""


@dataclass(frozen=True, slots=True)
class Option:
    """A blueprint that fits, as large as it may be, and what it would connect."""

    layer_id: str
    blueprint: Recipe
    ports: Ports

    @property
    def num_parameters(self) -> int:
        """Parameters of the graft."""
        return self.blueprint.parameters_of(self.ports)

    @property
    def multiply_adds(self) -> int:
        """Of its forward pass, for each row of outputs."""
        return self.blueprint.work_of(self.ports)


def ports_at(place: PlaceReport, seed_id: SeedId, blueprint: Recipe) -> Ports:
    """What a graft of one seed, or of all, connects."""
    if place.kind == "colony":
        pieces = tuple(filter(blueprint.meets, place.pieces))
        return Ports(place.inputs, place.outputs, place.layout, place.positions, pieces)
    width = place.outputs if seed_id == "all" else place.bounds[seed_id + 1] - place.bounds[seed_id]
    inputs, layout = (width, place.chunk_layout) if blueprint.reads_chunk else (place.inputs, place.layout)
    return Ports(inputs, width, layout, place.positions)


def parameter_room(seen: Observation, config: GrowthConfig) -> int:
    """Parameters that may still grow under ``max_growth`` and ``max_memory``.

    Memory counts weight and two moments in float32 for host and grafts alike, so that both are bounds on parameters.
    """
    bound = config.max_growth if config.max_memory is None else min(config.max_growth, config.max_memory)
    return int(bound * seen.host_parameters) - seen.grown_parameters


def budget_per_row(place: PlaceReport, seen: Observation, config: GrowthConfig, trial: str | None = None) -> int:
    """Multiply-adds that a graft may take for each row of outputs: ``capacity_per_round``, bounded by ``max_latency``
    and ``max_train_flops``.

    Before a training step was traced the host's parameters stand for its multiply-adds per row; whether those bounds
    are kept cannot be told then, and the budget is below 0 if one of them is set.

    Args:
        place: where it would grow.
        seen: what is known of the run.
        config: the budgets.
        trial: how it would be tried; None for ``config.trial``.
    """
    if place.rows < 1 or seen.host_multiply_adds < 1:
        is_bound = config.max_latency is not None or config.max_train_flops is not None
        return -1 if is_bound else int(config.capacity_per_round * seen.host_parameters)
    budget = int(config.capacity_per_round * seen.host_multiply_adds)
    if config.max_latency is not None:
        budget = min(budget, int(config.max_latency * seen.host_multiply_adds) - seen.grown_multiply_adds)
    if config.max_train_flops is not None:
        budget = min(budget, largest_graft(seen, config, trial or config.trial, is_colony=place.kind == "colony"))
    return budget // place.rows


def options(place: PlaceReport, seed_id: SeedId, seen: Observation, config: GrowthConfig) -> list[Option]:
    """The configured blueprints that fit a place, in their order, each as large as the budgets allow.

    One that cannot read the place's input reads its own chunk.

    Raises:
        ConfigError: if there is no such blueprint.
    """
    budget = budget_per_row(place, seen, config)
    room = min(parameter_room(seen, config), parameters_left(place, seen, config))
    found = []
    for blueprint_id in config.blueprints:
        blueprint = fitting(blueprint_id, place, seed_id)
        if blueprint is None or blueprint.confidence < config.min_confidence:
            continue
        ports = ports_at(place, seed_id, blueprint)
        largest = blueprint.sized(ports, budget, room)
        if largest is not None:
            found.append(Option(place.layer_id, largest, ports))
    return found


def nowhere(seen: Observation, config: GrowthConfig) -> str | None:
    """Why nothing is tried anywhere, as a sentence; None if something may be."""
    reason = _no_chance_at(_fitted(seen, config), seen, config)
    return None if reason is None else f"Nothing is tried: {reason}."


def no_colony(seen: Observation, config: GrowthConfig) -> str | None:
    """Why only single places are tried though there are colonies, as a sentence; None if one may be."""
    colonies = [place for place in _fitted(seen, config) if place.kind == "colony"]
    reason = _no_chance_at(colonies, seen, config)
    return None if reason is None else f"No colony is tried: {reason}."


def too_small(seen: Observation, config: GrowthConfig) -> str | None:
    """Which budgets leave no room for any configured blueprint at any dormant place; None if there is room, or no
    larger budget would help."""
    places = [place for place in seen.places if place.is_dormant]

    def fits(budgets: GrowthConfig) -> bool:
        return any(options(place, "all", seen, budgets) for place in places)

    if fits(config) or not fits(replace(config, **BOUNDLESS)):
        return None
    given = {name: getattr(config, name) for name in BOUNDLESS if getattr(config, name) is not None}
    alone = [name for name, value in given.items() if not fits(replace(config, **BOUNDLESS | {name: value}))]
    told = [f"{name} {given[name]:g}" for name in alone or given]
    return (
        f"Nothing can grow: no blueprint of the configuration is small enough for {' and '.join(told)} at any place. "
        f"Raise {'it' if len(told) == 1 else 'them'}, or set max_rounds=0, which never grows."
    )


def fitting(blueprint_id: str, place: PlaceReport, seed_id: SeedId) -> Recipe | None:
    """A blueprint as it is by default, or else reading its own chunk, if it fits the place; else None."""
    versions: tuple[dict[str, str], ...] = ({}, {"reads": "chunk"})
    for settings in versions:
        try:
            blueprint = make_blueprint(blueprint_id, settings)
        except ConfigError:
            if not settings:
                raise
            continue  # it refuses to read its chunk
        if blueprint.misfit(ports_at(place, seed_id, blueprint)) is None:
            return blueprint
    return None


def _fitted(seen: Observation, config: GrowthConfig) -> list[PlaceReport]:
    """Dormant places that a configured blueprint fits, whatever its size."""
    dormant = [place for place in seen.places if place.is_dormant]
    return [place for place in dormant if any(fitting(one, place, "all") is not None for one in config.blueprints)]


def _no_chance_at(places: list[PlaceReport], seen: Observation, config: GrowthConfig) -> str | None:
    """Why none of these places has a chance, told of the one that asks for least."""
    asked = sorted(places, key=lambda one: bound(one, seen, config))
    reasons = [no_chance(place, seen, config) for place in asked]
    return reasons[0] if reasons and all(reasons) else None
