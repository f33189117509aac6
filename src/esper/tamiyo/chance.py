"""Whether: a run that sees too little data for a larger network hardly gains from growing, whatever grows.

What counts is how many targets a run learns from for each of its parameters: every sample is one, and every token
where each is predicted. Neighbouring tokens tell of the same things, so that more of them are needed. The bounds were
measured (``python -m benchmarks.chance``): below them hardly any growth paid; above them almost all did.
"""

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation, PlaceReport

PER_SAMPLE = 35
"""Targets for each parameter from which growth pays where a sample is one target."""

PER_TOKEN = 150
"""The same where every token is, for what makes the host wider or deeper."""

PER_TOKEN_BESIDE = 50
"""And for modules that run beside the host, which may see what the host does not; a host that has 63 gains by them."""

LEFT, LEFT_BESIDE = 2 / 3, 1 / 2
"""Shares of the bound that must be left for the grown network; the second one where modules run beside a host whose
targets are tokens."""


def targets(seen: Observation) -> int | None:
    """Targets that the run will have learned from at its planned end; None before the first step."""
    last = seen.place_of_targets
    return None if last is None else last.rows * seen.planned_steps


def bound(place: PlaceReport, seen: Observation, config: GrowthConfig) -> float:
    """Targets for each parameter that growth at a place asks for."""
    if config.min_targets is not None:
        return config.min_targets
    if not _has_tokens(seen):
        return PER_SAMPLE
    return PER_TOKEN if place.kind == "colony" else PER_TOKEN_BESIDE


def no_chance(place: PlaceReport, seen: Observation, config: GrowthConfig) -> str | None:
    """Why nothing can be gained at a place; None if something can, or nobody can tell yet."""
    count, parameters = targets(seen), seen.host_parameters + seen.grown_parameters
    least = bound(place, seen, config)
    if count is None or count >= least * parameters:
        return None
    return (
        f"the run will learn from {count / parameters:.3g} targets per parameter, and growth asks for {least:g}: a "
        "larger network would hardly gain. min_targets=0 tries all the same"
    )


def parameters_left(place: PlaceReport, seen: Observation, config: GrowthConfig) -> float:
    """Parameters that may still grow at a place before too few targets are left for each."""
    left = LEFT_BESIDE if _has_tokens(seen) and place.kind != "colony" else LEFT
    count, least = targets(seen), left * bound(place, seen, config)
    if count is None or least == 0:
        return float("inf")
    return count / least - seen.host_parameters - seen.grown_parameters


def _has_tokens(seen: Observation) -> bool:
    """Whether every token is a target."""
    last = seen.place_of_targets
    return last is not None and last.layout == "tokens"
