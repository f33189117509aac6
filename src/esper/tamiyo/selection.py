"""Which blueprint: strategies that choose among those that fit, from what became of earlier ones."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev
from typing import Any

from esper.contracts.errors import ConfigError, closest
from esper.contracts.reports import FieldReport
from esper.tamiyo.sizing import Option

Selection = Callable[[Sequence[Option], Sequence[FieldReport]], Option]
"""Chooses one of at least one option, which come in the order of the configuration, from all reports so far."""

Z_95 = 1.645
"""One-sided 95 % quantile of the normal distribution."""


def by_performance(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Highest mean gain in held-out loss over the twin. What was not measured yet counts as no gain: blueprints that
    helped are tried again, those that harmed make way for the next in order."""
    return max(options, key=lambda option: _mean(_gains(option, history)))


def by_stability(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Least spread of the gains, of those that gain on average; then what was measured less than twice; then what
    reliably loses."""

    def key(option: Option) -> tuple[int, float]:
        gains = _gains(option, history)
        if len(gains) < 2:
            return 1, 0.0
        return 0 if fmean(gains) > 0 else 2, pstdev(gains)

    return min(options, key=key)


def by_accuracy(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Highest mean gain in the accuracy-like metric over the twin; not measured yet counts as none."""
    return max(options, key=lambda option: _mean(_measured(option, history, "metric_gain")))


def by_risk(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Highest lower bound of the share of lifecycles that ended FOSSILIZED (Wilson, JASA 1927; one-sided, 95 %).

    A blueprint's confidence level counts as so many kept lifecycles and one lost, which orders the untried ones.
    Cancelled lifecycles say nothing.
    """

    def bound(option: Option) -> float:
        outcomes = [one.outcome for one in _of(option, history) if one.outcome != "CANCELLED"]
        kept = outcomes.count("FOSSILIZED") + option.blueprint.confidence
        return wilson_lower_bound(kept, len(outcomes) + option.blueprint.confidence + 1)

    return max(options, key=bound)


def by_novelty(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Least often tried at this place, then anywhere."""

    def tries(option: Option) -> tuple[int, int]:
        past = _of(option, history)
        return sum(one.layer_id == option.layer_id for one in past), len(past)

    return min(options, key=tries)


def by_size(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Fewest parameters."""
    return min(options, key=lambda option: option.num_parameters)


def by_cost(options: Sequence[Option], history: Sequence[FieldReport]) -> Option:
    """Fewest multiply-adds in a forward pass."""
    return min(options, key=lambda option: option.multiply_adds)


SELECTIONS: dict[str, Selection] = {
    "performance": by_performance,
    "stability": by_stability,
    "accuracy": by_accuracy,
    "risk": by_risk,
    "novelty": by_novelty,
    "size": by_size,
    "cost": by_cost,
}
"""Selection strategies by name. Ties go to the first option, so to the order of the configuration."""


def register_selection(name: str, selection: Selection) -> None:
    """Add a selection strategy of your own.

    Raises:
        ConfigError: if there is one of this name.
    """
    if name in SELECTIONS:
        raise ConfigError(f"There is a selection strategy {name!r} already. Choose another name.")
    SELECTIONS[name] = selection


def selection_named(name: str) -> Selection:
    """Look up a selection strategy.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name not in SELECTIONS:
        raise ConfigError(f"There is no selection strategy {name!r}. {closest(name, SELECTIONS)}")
    return SELECTIONS[name]


def wilson_lower_bound(kept: int, tried: int) -> float:
    """One-sided 95 % lower bound of a share; 0 where nothing was tried."""
    if tried == 0:
        return 0.0
    share, z2 = kept / tried, Z_95**2
    centre = share + z2 / (2 * tried)
    margin = Z_95 * math.sqrt(share * (1 - share) / tried + z2 / (4 * tried**2))
    return max(0.0, (centre - margin) / (1 + z2 / tried))


def _of(option: Option, history: Sequence[FieldReport]) -> list[FieldReport]:
    return [one for one in history if one.blueprint == option.blueprint.id]


def gain_of(report: FieldReport) -> float | None:
    """Held-out loss of the twin minus that of the arm, relative to the twin's; None if it was not measured."""
    arm, twin = _twin(report, "gate_loss"), _twin(report, "twin_gate_loss")
    return None if arm is None or not twin else (twin - arm) / abs(twin)


def _gains(option: Option, history: Sequence[FieldReport]) -> list[float]:
    return [gain for one in _of(option, history) if (gain := gain_of(one)) is not None]


def _measured(option: Option, history: Sequence[FieldReport], name: str) -> list[float]:
    return [value for one in _of(option, history) if (value := _twin(one, name)) is not None]


def _twin(report: FieldReport, name: str) -> float | None:
    """A finite value measured against the twin; None if it was not measured."""
    value: Any = report.gates.get("twin", {}).get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
