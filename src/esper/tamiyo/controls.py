"""Control policies: what a clever one must beat."""

import random
from collections.abc import Sequence
from typing import Any

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.reports import FieldReport, Observation
from esper.tamiyo.proposal import germination, num_candidates, places_to_try
from esper.tamiyo.shortlist import Candidate
from esper.tamiyo.sizing import Option
from esper.tamiyo.timing import may_grow


class NeverPolicy:
    """Never grows: the run under Esper without growth.

    Args:
        config: not looked at.
    """

    def __init__(self, config: GrowthConfig) -> None:
        pass

    def decide(self, observation: Observation) -> list[Command]:
        """Nothing."""
        return []


class RandomPolicy:
    """Grows at random times of the growth window, at random places with random blueprints, within the same budgets.

    Args:
        config: its ``seed`` determines everything.
    """

    def __init__(self, config: GrowthConfig) -> None:
        self._config = config
        self._random = random.Random(config.seed)
        window = config.grow_after, config.grow_until
        self._times = sorted(self._random.uniform(*window) for _ in range(config.max_rounds))

    def decide(self, observation: Observation) -> list[Command]:
        """A round's candidates once the next random time has come, or nothing."""
        seen, config = observation, self._config
        if not may_grow(seen, config) or seen.step / seen.planned_steps < self._times[seen.rounds_done]:
            return []
        places = places_to_try(seen, config)
        chosen = self._random.sample(places, min(len(places), num_candidates(seen, config)))
        return [germination(Candidate(one), seen, config, self._select, "its random time has come") for one in chosen]

    def state_dict(self) -> dict[str, Any]:
        """Where its random stream stands."""
        version, words, _ = self._random.getstate()
        return {"version": version, "words": list(words)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`, for a policy of the same configuration."""
        self._random.setstate((state["version"], tuple(state["words"]), None))

    def _select(self, options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
        return self._random.choice(options)
