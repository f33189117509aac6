"""Hard limits: each command to germinate is checked before it reaches Kasmina, whoever sends it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from esper.blueprints.catalogue import known_blueprints, make_blueprint
from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, closest
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport, Observation, PlaceReport
from esper.tamiyo.sizing import Option, fitting, ports_at
from esper.tamiyo.train_flops import looks_of_a_trial, room, worst_case

TRAINING_BYTES = 12
"""Of a parameter that trains: itself and two moments, in float32. The same for host and grafts."""


class Case(NamedTuple):
    """What a rule judges: the graft that a command asks for at a place."""

    command: Command
    place: PlaceReport
    option: Option
    seen: Observation
    config: GrowthConfig


Rule = Callable[[Case], str | None]
"""Why a graft may not grow; None if it may."""


def veto(command: Command, observation: Observation, config: GrowthConfig) -> str | None:
    """Why a command must not be carried out; None if it may. Commands other than to GERMINATED pass.

    Args:
        command: the command.
        observation: what is known of the run.
        config: the limits.
    """
    if command.target is not State.GERMINATED:
        return None
    place = next((one for one in observation.places if one.layer_id == command.layer_id), None)
    if place is None:
        valid = [one.layer_id for one in observation.places]
        return f"There is no place {command.layer_id!r}. {closest(str(command.layer_id), valid)}"
    option = _option(command, place)
    if isinstance(option, str):
        return option
    case = Case(command, place, option, observation, config)
    return next((reason for rule in RULES if (reason := rule(case)) is not None), None)


def admit(
    commands: Sequence[Command], observation: Observation, config: GrowthConfig
) -> list[tuple[Command, str | None]]:
    """Check the commands of one boundary, each as if those admitted before it had been carried out.

    All count against ``max_active_seeds``. Grafts of live trials add up; of a round's candidates only one can be
    adopted, so the largest counts.

    Returns:
        Every command with its veto, or None, in order.
    """
    live, verdicts = observation, []
    parameters = multiply_adds = 0  # of the largest candidate of the round
    for command in commands:
        seen = live
        if command.trial == "live":
            seen = replace(
                live,
                grown_parameters=live.grown_parameters + parameters,
                grown_multiply_adds=live.grown_multiply_adds + multiply_adds,
            )
        reason = veto(command, seen, config)
        verdicts.append((command, reason))
        if reason is not None or command.target is not State.GERMINATED:
            continue
        place = next(one for one in observation.places if one.layer_id == command.layer_id)
        option = _option(command, place)
        assert isinstance(option, Option)
        live = replace(live, active=live.active + 1)
        if command.trial == "live":
            live = replace(
                live,
                grown_parameters=live.grown_parameters + option.num_parameters,
                grown_multiply_adds=live.grown_multiply_adds + option.multiply_adds * place.rows,
                open_arm_steps=live.planned_steps - live.step if config.judge == "twin" else 0,
                open_evaluations=live.open_evaluations + looks_of_a_trial(config),
            )
        else:
            parameters = max(parameters, option.num_parameters)
            multiply_adds = max(multiply_adds, option.multiply_adds * place.rows)
            waiting = (*live.waiting_multiply_adds, option.multiply_adds * place.rows)
            live = replace(live, waiting_multiply_adds=waiting)
    return verdicts


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


def _option(command: Command, place: PlaceReport) -> Option | str:
    """What a command would grow, or why it cannot be."""
    seed = command.seed_id
    if seed != "all" and not (isinstance(seed, int) and 0 <= seed < place.num_seeds):
        return f"{place.layer_id!r} has no seed {seed!r}. It has seeds 0 to {place.num_seeds - 1}, or 'all'."
    if command.blueprint is None:
        return "A command to germinate must name a blueprint."
    try:
        blueprint = make_blueprint(command.blueprint, command.settings)
    except ConfigError as error:
        return str(error)
    ports = ports_at(place, seed, blueprint.reads)
    misfit = blueprint.misfit(ports)
    if misfit is not None:
        valid = [name for name in sorted(known_blueprints()) if fitting(name, place, seed) is not None]
        return (
            f"{blueprint.id!r} does not fit {place.layer_id!r}: {misfit}. What fits: {', '.join(valid) or 'nothing'}."
        )
    return Option(place.layer_id, blueprint, ports)


def _parameters(case: Case) -> str | None:
    option, seen, config = case.option, case.seen, case.config
    grown, bound = seen.grown_parameters + option.num_parameters, config.max_growth * seen.host_parameters
    if grown <= bound:
        return None
    return (
        f"Parameters: {option.num_parameters:,} more would make {grown:,} grown ones, above max_growth "
        f"{config.max_growth:g} x the host's {seen.host_parameters:,}. Grow a smaller graft, or raise max_growth."
    )


def _memory(case: Case) -> str | None:
    option, seen, config = case.option, case.seen, case.config
    if config.max_memory is None:
        return None
    needed = TRAINING_BYTES * (seen.grown_parameters + option.num_parameters)
    host = TRAINING_BYTES * seen.host_parameters
    if needed <= config.max_memory * host:
        return None
    return (
        f"Memory: grafts with their optimizer state would take {needed:,} bytes, above max_memory "
        f"{config.max_memory:g} x the host's {host:,}. Grow a smaller graft, or raise max_memory."
    )


def _latency(case: Case) -> str | None:
    place, option, seen, config = case.place, case.option, case.seen, case.config
    if config.max_latency is None:
        return None
    if seen.host_multiply_adds < 1 or place.rows < 1:
        return (
            "Latency: max_latency is set, but no training step has passed through this place yet, so that nothing can "
            "be compared. Germinate after the first step, or leave max_latency out."
        )
    needed = seen.grown_multiply_adds + option.multiply_adds * place.rows
    if needed <= config.max_latency * seen.host_multiply_adds:
        return None
    return (
        f"Latency: grafts would take {needed:,} multiply-adds in a forward pass, above max_latency "
        f"{config.max_latency:g} x the host's {seen.host_multiply_adds:,}. Grow a smaller graft, or raise max_latency."
    )


def _train_flops(case: Case) -> str | None:
    place, option, seen, config = case.place, case.option, case.seen, case.config
    if config.max_train_flops is None:
        return None
    if not seen.step_flops or seen.host_multiply_adds < 1 or place.rows < 1:
        return (
            "FLOPs: max_train_flops is set, but no training step has passed through this place yet, so that nothing "
            "can be planned. Germinate after the first step, or leave max_train_flops out."
        )
    asked = worst_case([option.multiply_adds * place.rows], seen, config, case.command.trial)
    if asked <= room(seen, config):
        return None
    total = config.max_train_flops * seen.step_flops * seen.planned_steps
    return (
        f"FLOPs: the run could come to {total - room(seen, config) + asked:.3g} training FLOPs if this were tried and "
        f"adopted, above max_train_flops {config.max_train_flops:g} x the {total / config.max_train_flops:.3g} without "
        "growth. Grow a smaller graft, try fewer, or raise max_train_flops."
    )


def _confidence(case: Case) -> str | None:
    option, config = case.option, case.config
    level = option.blueprint.confidence
    if level >= config.min_confidence:
        return None
    return (
        f"Confidence: {option.blueprint.id!r} has level {level}, below min_confidence {config.min_confidence}. "
        "Name a blueprint that has proved itself, or lower min_confidence."
    )


def _rest(case: Case) -> str | None:
    """Embargo after a cull, quarantine after a rollback."""
    command, place, config = case.command, case.place, case.config
    states = place.states if command.seed_id == "all" else [place.states[command.seed_id]]
    if State.ROLLED_BACK in states:
        return f"Quarantine: {_seeds(command)} was rolled back. It rests for {config.quarantine_epochs} epochs."
    is_elsewhere = command.seed_id != "all" and (State.CULLED in place.states or State.ROLLED_BACK in place.states)
    if State.CULLED in states or (place.is_under_embargo and not is_elsewhere):
        return f"Embargo: {_seeds(command)} was culled. It rests for {config.embargo_epochs} epochs."
    return None


def _concurrency(case: Case) -> str | None:
    seen, config = case.seen, case.config
    if seen.active < config.max_active_seeds:
        return None
    return (
        f"Concurrency: {seen.active} lifecycles are under way, and max_active_seeds is {config.max_active_seeds}. "
        "Wait until one has ended, or cancel one."
    )


def _failures(case: Case) -> str | None:
    place, seen, config = case.place, case.seen, case.config
    count = failures_in_a_row(place.layer_id, seen.reports)
    if count < config.max_failures:
        return None
    return (
        f"Failures: the last {count} lifecycles of {place.layer_id!r} failed one after the other, and max_failures is "
        f"{config.max_failures}. Grow elsewhere."
    )


def _seeds(command: Command) -> str:
    return f"{'a seed' if command.seed_id == 'all' else f'seed {command.seed_id}'} of {command.layer_id!r}"


RULES: tuple[Rule, ...] = (
    *(_rest, _failures, _concurrency, _confidence),
    *(_parameters, _memory, _latency, _train_flops),
)
"""In the order in which they are asked; the first veto stands."""
