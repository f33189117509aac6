"""What a rollout is to do, and what it asks for: checked before anything begins."""

import math
from dataclasses import dataclass, fields
from typing import Any

from esper.contracts.errors import ConfigError

FINEST = 1000
"""Shares are told apart to this part of a percent."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """When a step is taken, and when the rollout is taken back.

    Args:
        min_runs: with the flag on, and without it, that must have told how well they do since the step before.
        min_seconds: that a step lasts at least.
        worse_by: share by which a step of training may take longer, or the held-out loss be higher.
        more_errors: share of runs that may fail in addition, and whose memory may grow without end.
        damaged_runs: runs with the flag on whose data are damaged, at which the rollout is taken back, if they are
            also more of those with the flag on than ``more_errors``.
        patience_s: after which data that do not come are missing.
        stale_s: after which a run that tells nothing, and has not ended, has crashed.
        alpha: chance that a rollout without harm is ever taken back by the comparisons, over all looks.

    Raises:
        ConfigError: if a number makes no sense.
    """

    min_runs: int = 5
    min_seconds: float = 0.0
    worse_by: float = 0.1
    more_errors: float = 0.05
    damaged_runs: int = 2
    patience_s: float = 86_400.0
    stale_s: float = 900.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            option = "--" + field.name.removesuffix("_s").replace("_", "-")
            if not math.isfinite(value) or value < 0 or (value == 0 and field.name != "min_seconds"):
                raise ConfigError(f"{option} must be above 0, not {value:g}.")
            if field.name in ("alpha", "more_errors") and value >= 1:
                raise ConfigError(f"{option} must be below 100 %, not {100 * value:g} %.")
        if self.patience_s < self.stale_s:
            raise ConfigError(
                f"--patience {self.patience_s:g} is shorter than --stale {self.stale_s:g}, after which a silent run "
                "has crashed. Give a longer patience, or a shorter --stale."
            )


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one rollout.

    Args:
        flag: that is turned on.
        plan: shares of models in percent, rising; the last one completes the rollout.
        flags: path of the store.
        source: path of the directory with the runs, or URL of the bus or the Prometheus.
        criteria: what is asked for.

    Raises:
        ConfigError: if the plan does not rise, leaves 0 to 100, or has nothing to compare with.
    """

    flag: str
    plan: tuple[float, ...]
    flags: str
    source: str
    criteria: Criteria

    def __post_init__(self) -> None:
        told = ",".join(f"{percent:g}" for percent in self.plan)
        if not self.plan:
            raise ConfigError("The plan is empty. Give shares in percent: --plan 1,10,25,50,75,100.")
        if wrong := [percent for percent in self.plan if not 0 < percent <= 100]:
            raise ConfigError(
                f"The plan {told} holds {wrong[0]:g}. Each share must be above 0 and at most 100 percent."
            )
        if wrong := [percent for percent in self.plan if round(percent * FINEST) != percent * FINEST]:
            raise ConfigError(f"The plan {told} holds {wrong[0]!r}. Shares go in steps of {1 / FINEST:g} percent.")
        for before, after in zip(self.plan, self.plan[1:], strict=False):
            if after <= before:
                how = "repeats" if after == before else "falls from"
                more = "" if after == before else f" to {after:g}"
                raise ConfigError(f"The plan {told} {how} {before:g}{more}. Each share must be above the one before.")
        if self.plan[0] == 100:
            raise ConfigError("The plan 100 leaves no run without the flag to compare with. Begin with a lower share.")


def parse_plan(text: str) -> tuple[float, ...]:
    """Shares in percent from ``1,10,25,50,75,100``.

    Raises:
        ConfigError: if one is no number.
    """
    shares = []
    for word in text.split(","):
        try:
            shares.append(float(word.strip().removesuffix("%")))
        except ValueError:
            raise ConfigError(
                f"--plan {text}: {word.strip()!r} is no number. Give shares in percent: --plan 1,10,25,50,75,100."
            ) from None
    return tuple(shares)


def terms_from(line: dict[str, Any]) -> Terms:
    """Terms as :func:`dataclasses.asdict` gave them to JSON."""
    known = {name: line[name] for name in ("flag", "flags", "source")}
    return Terms(**known, plan=tuple(line["plan"]), criteria=Criteria(**line["criteria"]))
