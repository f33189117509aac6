"""What a controller may do at a boundary: every germination that fits and that the shield lets pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport
from esper.tamiyo import shield
from esper.tamiyo.proposal import places_to_try
from esper.tamiyo.sizing import Option, budget_per_row, options, parameter_room
from esper.tamiyo.strategy_choice import choose_strategy
from esper.tamiyo.timing import may_grow

SHARES = (1.0, 0.5, 0.25)
"""Of the largest graft that the budgets allow."""


@dataclass(frozen=True)
class Action:
    """One graft that may be tried: where, what, and how large.

    Args:
        place: where; all of its seeds grow as one group.
        option: the blueprint, sized, and what it would connect.
        share: of the largest size that the budgets allow.
    """

    place: PlaceReport
    option: Option
    share: float = 1.0

    def command(self, config: GrowthConfig, reason: str) -> Command:
        """To try it; how it is blended in follows from the conditions at the place."""
        return Command(
            self.place.layer_id,
            "all",
            State.GERMINATED,
            reason,
            blueprint=self.option.blueprint.id,
            settings=self.option.blueprint.settings,
            strategy=choose_strategy(self.place, config),
            trial=config.trial,
        )


def legal_actions(seen: Observation, config: GrowthConfig) -> list[Action]:
    """Every action there is, in the order of places, blueprints and sizes; none where no round may begin."""
    if not may_grow(seen, config):
        return []
    found = (one for place in places_to_try(seen, config) for one in _at(place, seen, config))
    return [one for one in found if shield.veto(one.command(config, ""), seen, config) is None]


def _at(place: PlaceReport, seen: Observation, config: GrowthConfig) -> Iterator[Action]:
    for largest in options(place, "all", seen, config):
        known: list[Any] = []
        for share in SHARES:
            sized = _smaller(largest, share)
            if sized is not None and sized.blueprint not in known:
                known.append(sized.blueprint)
                yield Action(place, sized, share)


def _smaller(largest: Option, share: float) -> Option | None:
    """The blueprint with a share of what its largest version takes; None if there is no such version."""
    if share == 1.0:
        return largest
    if largest.blueprint.size is None:
        return None
    work, parameters = share * largest.multiply_adds, share * largest.num_parameters
    sized = largest.blueprint.sized(largest.ports, work, parameters)
    return None if sized is None else replace(largest, blueprint=sized)


def costs(action: Action, seen: Observation) -> tuple[float, float]:
    """Parameters and multiply-adds of the graft, relative to the host's."""
    work = action.option.multiply_adds * max(1, action.place.rows)
    return (
        action.option.num_parameters / max(1, seen.host_parameters),
        work / max(1, seen.host_multiply_adds),
    )


def budgets_left(seen: Observation, config: GrowthConfig) -> Sequence[float]:
    """Room that is left for parameters and, at the widest place, for multiply-adds; relative to the host's."""
    work = max((budget_per_row(one, seen, config) * one.rows for one in seen.places), default=0)
    return parameter_room(seen, config) / max(1, seen.host_parameters), work / max(1, seen.host_multiply_adds)
