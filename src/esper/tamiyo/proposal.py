"""From a candidate to a command, for every policy that keeps the budgets."""

from collections.abc import Sequence
from dataclasses import replace

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport
from esper.tamiyo.chance import no_chance
from esper.tamiyo.selection import Selection
from esper.tamiyo.shield import failures_in_a_row
from esper.tamiyo.shortlist import Candidate
from esper.tamiyo.sizing import options
from esper.tamiyo.strategy_choice import choose_strategy
from esper.tamiyo.train_flops import num_arms


def places_to_try(seen: Observation, config: GrowthConfig) -> list[PlaceReport]:
    """Dormant places that have not failed too often and that a configured blueprint fits within the budgets."""
    return [place for place in seen.places if why_left_out(place, seen, config) is None]


def why_left_out(place: PlaceReport, seen: Observation, config: GrowthConfig) -> str | None:
    """Why a place may not be tried; None if it may."""
    if not place.is_dormant:
        states = sorted({State(code).name for code in place.states if code})
        return f"seeds are {', '.join(states)}"
    if (failed := failures_in_a_row(place.layer_id, seen.reports)) >= config.max_failures:
        return f"the last {failed} lifecycles there failed, and max_failures is {config.max_failures}"
    if (reason := no_chance(place, seen, config)) is not None:
        return reason
    if not options(place, "all", seen, config):
        return "none of the configured blueprints fits there within the budgets"
    return None


def num_candidates(seen: Observation, config: GrowthConfig) -> int:
    """How many grafts may be tried now. Live ones grow jointly in the run itself, where their worth could not be told
    apart, so only one of them."""
    return 1 if config.trial == "live" else min(num_arms(seen, config), config.max_active_seeds - seen.active)


def germination(
    candidate: Candidate,
    seen: Observation,
    config: GrowthConfig,
    select: Selection,
    reason: str,
    offered: Sequence[str | None] = (),
) -> Command:
    """The command to try a candidate with the selected blueprint and the strategy that the place asks for.

    A blueprint that fits all chunks of a layer may not fit one of them; then all are tried.

    Args:
        candidate: where.
        seen: what is known of the run.
        config: its budgets.
        select: chooses one of the blueprints that fit.
        reason: for the audit log.
        offered: blueprints of the round's other candidates. Where ``select`` has no preference, that is as long as
            nothing was measured, blueprints take turns, so that a round tries more than one where more than one fit.
    """
    fits = options(candidate.place, candidate.seed_id, seen, config)
    if not fits:
        candidate = replace(candidate, seed_id="all")
        fits = options(candidate.place, "all", seen, config)
    fits.sort(key=lambda option: offered.count(option.blueprint.id))  # ties go to the first
    blueprint = select(fits, seen.reports).blueprint
    return Command(
        candidate.place.layer_id,
        candidate.seed_id,
        State.GERMINATED,
        reason,
        blueprint=blueprint.id,
        settings=blueprint.settings,
        strategy=choose_strategy(candidate.place, config),
        trial=config.trial,
    )
