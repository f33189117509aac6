"""The heuristic controller: when training stalls, offer a shortlist of places and let a round decide."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport


class Policy(Protocol):
    """A controller."""

    def decide(self, observation: Observation) -> list[Command]:
        """Commands for what it sees at a boundary; an empty list to let the run go on."""
        ...


class HeuristicPolicy:
    """Germinates inside the growth window, when the held-out loss stalls or the time has come.

    Args:
        config: window, patience, capacity and bounds.
    """

    def __init__(self, config: GrowthConfig) -> None:
        self._config = config

    def decide(self, observation: Observation) -> list[Command]:
        """A round's candidates, or nothing."""
        reason = self._reason_to_grow(observation)
        if reason is None:
            return []
        return list(self._candidates(observation, reason))

    def _reason_to_grow(self, seen: Observation) -> str | None:
        config, fraction = self._config, seen.step / seen.planned_steps
        if seen.rounds_done >= config.max_rounds or not config.grow_after <= fraction <= config.grow_until:
            return None
        if any(place.is_under_embargo for place in seen.places):
            return None  # a round without the places that lost the last one would be no fair choice
        if overfits(seen.train_losses, seen.select_losses, config.patience):
            return None
        if has_stalled(seen.select_losses, config.patience, config.min_delta):
            return "the held-out loss has stalled"
        share = seen.rounds_done / max(1, config.max_rounds - 1)
        latest = config.grow_at + share * (config.grow_until - config.grow_at)
        return "the growth window is open" if fraction >= latest else None

    def _candidates(self, seen: Observation, reason: str) -> Iterator[Command]:
        """Places by kind: the longest path first, then halves, then one layer-wide group."""
        config = self._config
        room = int(config.max_growth * seen.host_parameters) - seen.grown_parameters
        budget = min(int(config.capacity_per_round * seen.host_parameters), room)
        for index, place in enumerate(shortlist(seen.places, config.max_candidates)):
            # a dense graft's multiply-adds are its weights: inputs, bias and outputs of each hidden unit, output biases
            hidden = (budget - place.outputs) // (place.inputs + place.outputs + 1)
            if hidden < 1:
                continue
            blueprint = config.blueprints[index % len(config.blueprints)]
            yield Command(
                place.layer_id, "all", State.GERMINATED, reason, blueprint=blueprint, settings={"hidden": hidden}
            )


def shortlist(places: Sequence[PlaceReport], length: int) -> list[PlaceReport]:
    """Dormant places that a round should try: paths around much of the host first, one single layer at the most."""
    free = [place for place in places if place.is_dormant]
    paths = sorted((place for place in free if place.kind != "layer"), key=lambda place: -place.host_parameters)
    layers = sorted((place for place in free if place.kind == "layer"), key=lambda place: -place.host_parameters)
    if not paths:
        return layers[:length]
    last = layers[: 1 if length > 1 else 0]
    return [*paths[: length - len(last)], *last]


def has_stalled(losses: Sequence[float], patience: int, min_delta: float) -> bool:
    """Whether the loss improved by less than ``min_delta`` (relative, per epoch) over the last ``patience`` epochs."""
    if len(losses) <= patience:
        return False
    before, now = losses[-1 - patience], losses[-1]
    return before - now < patience * min_delta * abs(before)


def overfits(train_losses: Sequence[float], select_losses: Sequence[float], patience: int) -> bool:
    """Whether over the last ``patience`` epochs training loss fell while held-out loss rose."""
    if min(len(train_losses), len(select_losses)) <= patience:
        return False
    return train_losses[-1] < train_losses[-1 - patience] and select_losses[-1] > select_losses[-1 - patience]
