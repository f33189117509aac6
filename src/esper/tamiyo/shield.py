"""Hard limits: each command to germinate is checked before it reaches Kasmina, whoever sends it.

A command that names several seeds is judged as a whole, by what all of it would add: grafts of live trials add up; of a
round's candidates only one can be adopted, so the largest counts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from esper.blueprints.catalogue import known_blueprints, make_blueprint
from esper.contracts.commands import Command, SeedId
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport, Observation, PlaceReport
from esper.tamiyo.sizing import Option, fitting, ports_at
from esper.tamiyo.train_flops import room, worst_case

TRAINING_BYTES = 12
"""Of a parameter that trains: itself and two moments, in float32. The same for host and grafts."""


class Asked(NamedTuple):
    """One graft that a command asks for: where, and what."""

    place: PlaceReport
    seed_id: SeedId
    option: Option

    @property
    def multiply_adds(self) -> int:
        """Of its forward pass on the traced training step."""
        return self.option.multiply_adds * self.place.rows


class Case(NamedTuple):
    """What a rule judges: the grafts that a command asks for."""

    command: Command
    grafts: Sequence[Asked]
    seen: Observation
    config: GrowthConfig

    @property
    def parameters(self) -> int:
        """That would be grown."""
        return self._together([one.option.num_parameters for one in self.grafts])

    @property
    def multiply_adds(self) -> int:
        """Of all that would be grown."""
        return self._together([one.multiply_adds for one in self.grafts])

    def _together(self, sizes: Sequence[int]) -> int:
        return sum(sizes) if self.command.trial == "live" else max(sizes)


Rule = Callable[[Case], str | None]
"""Why grafts may not grow; None if they may."""


def veto(command: Command, observation: Observation, config: GrowthConfig) -> str | None:
    """Why a command must not be carried out; None if it may. Commands other than to GERMINATED pass.

    Args:
        command: the command.
        observation: what is known of the run, with all places that the command names.
        config: the limits.
    """
    if command.target is not State.GERMINATED:
        return None
    grafts = _grafts(command, observation)
    if isinstance(grafts, str):
        return grafts
    case = Case(command, grafts, observation, config)
    return next((reason for rule in RULES if (reason := rule(case)) is not None), None)


def failures_in_a_row(layer_id: str, reports: Sequence[FieldReport]) -> int:
    """Lifecycles of a place that failed one after the other until now. A cancelled one neither counts nor ends the
    row."""
    count = 0
    for report in reversed(reports):
        if report.layer_id != layer_id or report.outcome == State.CANCELLED.name:
            continue
        if report.outcome not in (State.CULLED.name, State.ROLLED_BACK.name):
            break
        count += 1
    return count


def _grafts(command: Command, seen: Observation) -> list[Asked] | str:
    """What a command would grow, or why it cannot be."""
    places = {one.layer_id: one for one in seen.places}
    for layer_id, seed in command.addresses:
        if layer_id not in places:
            return f"There is no place {layer_id!r}. {closest(str(layer_id), list(places))}"
        count = places[layer_id].num_seeds
        if seed != "all" and not (isinstance(seed, int) and 0 <= seed < count):
            return f"{layer_id!r} has no seed {seed!r}. It has seeds 0 to {count - 1}, or 'all'."
    if not command.addresses:
        return "A command must name a seed."
    if command.blueprint is None:
        return "A command to germinate must name a blueprint."
    try:
        blueprint = make_blueprint(command.blueprint, command.settings)
    except ConfigError as error:
        return str(error)
    grafts, fits = [], set()
    for layer_id, seed in command.addresses:
        place = places[layer_id]
        ports = ports_at(place, seed, blueprint)
        if ports not in fits and (misfit := blueprint.misfit(ports)) is not None:
            valid = ", ".join(name for name in sorted(known_blueprints()) if fitting(name, place, seed) is not None)
            return f"{blueprint.id!r} does not fit {layer_id!r}: {misfit}. What fits: {valid or 'nothing'}."
        fits.add(ports)
        grafts.append(Asked(place, seed, Option(layer_id, blueprint, ports)))
    return grafts


def _parameters(case: Case) -> str | None:
    added, seen, config = case.parameters, case.seen, case.config
    grown, bound = seen.grown_parameters + added, config.max_growth * seen.host_parameters
    if grown <= bound:
        return None
    return (
        f"Parameters: {added:,} more would make {grown:,} grown ones, above max_growth "
        f"{config.max_growth:g} x the host's {seen.host_parameters:,}. Grow a smaller graft, or raise max_growth."
    )


def _memory(case: Case) -> str | None:
    seen, config = case.seen, case.config
    if config.max_memory is None:
        return None
    needed = TRAINING_BYTES * (seen.grown_parameters + case.parameters)
    host = TRAINING_BYTES * seen.host_parameters
    if needed <= config.max_memory * host:
        return None
    return (
        f"Memory: grafts with their optimizer state would take {needed:,} bytes, above max_memory "
        f"{config.max_memory:g} x the host's {host:,}. Grow a smaller graft, or raise max_memory."
    )


def _latency(case: Case) -> str | None:
    seen, config = case.seen, case.config
    if config.max_latency is None:
        return None
    if seen.host_multiply_adds < 1 or any(one.place.rows < 1 for one in case.grafts):
        return (
            "Latency: max_latency is set, but no training step has passed through this place yet, so that nothing can "
            "be compared. Germinate after the first step, or leave max_latency out."
        )
    needed = seen.grown_multiply_adds + case.multiply_adds
    if needed <= config.max_latency * seen.host_multiply_adds:
        return None
    return (
        f"Latency: grafts would take {needed:,} multiply-adds in a forward pass, above max_latency "
        f"{config.max_latency:g} x the host's {seen.host_multiply_adds:,}. Grow a smaller graft, or raise max_latency."
    )


def _train_flops(case: Case) -> str | None:
    seen, config = case.seen, case.config
    if config.max_train_flops is None:
        return None
    if not seen.step_flops or seen.host_multiply_adds < 1 or any(one.place.rows < 1 for one in case.grafts):
        return (
            "FLOPs: max_train_flops is set, but no training step has passed through this place yet, so that nothing "
            "can be planned. Germinate after the first step, or leave max_train_flops out."
        )
    asked = worst_case(
        [one.multiply_adds for one in case.grafts],
        seen,
        config,
        case.command.trial,
        are_colonies=any(one.place.kind == "colony" for one in case.grafts),
    )
    if asked <= room(seen, config):
        return None
    total = config.max_train_flops * seen.step_flops * seen.planned_steps
    return (
        f"FLOPs: the run could come to {total - room(seen, config) + asked:.3g} training FLOPs if this were tried and "
        f"adopted, above max_train_flops {config.max_train_flops:g} x the {total / config.max_train_flops:.3g} without "
        "growth. Grow a smaller graft, try fewer, or raise max_train_flops."
    )


def _confidence(case: Case) -> str | None:
    blueprint, config = case.grafts[0].option.blueprint, case.config
    if blueprint.confidence >= config.min_confidence:
        return None
    return (
        f"Confidence: {blueprint.id!r} has level {blueprint.confidence}, below min_confidence {config.min_confidence}. "
        "Name a blueprint that has proved itself, or lower min_confidence."
    )


def _rest(case: Case) -> str | None:
    """Embargo after a cull, quarantine after a rollback."""
    rests = {id(one.place): bool({State.CULLED, State.ROLLED_BACK} & {*one.place.states}) for one in case.grafts}
    for place, seed, _ in case.grafts:
        name = f"{'a seed' if seed == 'all' else f'seed {seed}'} of {place.layer_id!r}"
        states = place.states if seed == "all" else [place.states[seed]]
        if State.ROLLED_BACK in states:
            return f"Quarantine: {name} was rolled back. It rests for {case.config.quarantine_epochs} epochs."
        is_elsewhere = seed != "all" and rests[id(place)]
        if State.CULLED in states or (place.is_under_embargo and not is_elsewhere):
            return f"Embargo: {name} was culled. It rests for {case.config.embargo_epochs} epochs."
    return None


def _concurrency(case: Case) -> str | None:
    seen, config, more = case.seen, case.config, len(case.grafts)
    if seen.active + more <= config.max_active_seeds:
        return None
    return (
        f"Concurrency: {seen.active} lifecycles are under way{f', {more} are asked for' if more > 1 else ''}, and "
        f"max_active_seeds is {config.max_active_seeds}. Wait until one has ended, or cancel one."
    )


def _failures(case: Case) -> str | None:
    for layer_id in dict.fromkeys(one.place.layer_id for one in case.grafts):
        count = failures_in_a_row(layer_id, case.seen.reports)
        if count >= case.config.max_failures:
            return (
                f"Failures: the last {count} lifecycles of {layer_id!r} failed one after the other, and max_failures "
                f"is {case.config.max_failures}. Grow elsewhere."
            )
    return None


RULES: tuple[Rule, ...] = (
    *(_rest, _failures, _concurrency, _confidence),
    *(_parameters, _memory, _latency, _train_flops),
)
"""In the order in which they are asked; the first veto stands."""
