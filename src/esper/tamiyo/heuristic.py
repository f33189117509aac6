"""The heuristic controller: when training stalls, offer a shortlist of places and let a round decide."""

from typing import Protocol

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation
from esper.tamiyo.proposal import germination, num_candidates, places_to_try
from esper.tamiyo.selection import selection_named
from esper.tamiyo.shortlist import shortlist
from esper.tamiyo.timing import reason_to_grow


class Policy(Protocol):
    """A controller.

    One that remembers also has ``state_dict`` and ``load_state_dict``, which checkpoints store. One that wants to know
    what became of its commands also has ``answered(answer)``: it is called after every :meth:`decide` with the
    :class:`~esper.contracts.commands.Answer` to each command, in their order, refusals and vetoes among them;
    ``answer.command_id`` is the command's ``id``. One that has something to tell the user has ``remarks()``: sentences
    that nobody was told yet; it is called after every :meth:`decide`.
    """

    def decide(self, observation: Observation) -> list[Command]:
        """Commands for what it sees at a boundary; an empty list to let the run go on."""
        ...


class HeuristicPolicy:
    """Germinates inside the growth window, when the held-out loss stalls or the time has come.

    It remembers nothing: what it decides depends on what it sees alone.

    Args:
        config: when, where and how much.

    Raises:
        ConfigError: if there is no such selection strategy.
    """

    def __init__(self, config: GrowthConfig) -> None:
        self._config = config
        self._select = selection_named(config.selection)

    def decide(self, observation: Observation) -> list[Command]:
        """A round's candidates, or the graft of a live trial, or nothing."""
        config = self._config
        reason = reason_to_grow(observation, config)
        if reason is None:
            return []
        places, length = places_to_try(observation, config), num_candidates(observation, config)
        commands: list[Command] = []
        for candidate in shortlist(places, length, among=observation.places):
            offered = [command.blueprint for command in commands]
            commands.append(germination(candidate, observation, config, self._select, reason, offered))
        return commands
