"""What a sweep is to do: its trials, by what they are ranked, and which of them end early."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esper.contracts.errors import ConfigError, closest

METRICS = {"held_out_loss": "min", "held_out_metric": "max", "parameters": "min", "train_flops": "min"}
"""By what trials can be ranked, and which way is better. Nothing is chosen by test samples."""

DURING = ("held_out_loss", "held_out_metric")
"""Those that are known in the middle of a trial too, and by which one can be stopped early."""

MODES = ("min", "max")
WORST = 1e30
"""Stands for a value that is not finite where values are compared."""


@dataclass(frozen=True)
class Trial:
    """A run of a sweep.

    Args:
        number: from 0, in the order in which they begin.
        parameters: what tells it from the others: options by name, growth settings as ``growth.NAME``.
        values: all that describes the run, as a configuration file of ``esper run`` holds it.
    """

    number: int
    parameters: Mapping[str, Any]
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"{self.number:04}"


@dataclass(frozen=True)
class Asha:
    """Successive halving, asynchronous (Li et al., arXiv:1810.05934), in the form of Ray Tune: a trial that reaches a
    rung is judged against those that were there before it, and either goes on at once or ends.

    Args:
        grace_epochs: of the first rung: no trial ends before. Each next rung stands ``reduction_factor`` times higher.
        reduction_factor: one of so many goes on from a rung.
    """

    grace_epochs: int = 1
    reduction_factor: int = 4

    def __post_init__(self) -> None:
        for name, least in (("grace_epochs", 1), ("reduction_factor", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"asha: {name} must be at least {least}, not {getattr(self, name)}.")

    def rungs(self, epochs: int) -> tuple[int, ...]:
        """Epochs after which a trial of so many is judged: never after its last one."""
        found, rung = [], self.grace_epochs
        while rung < epochs:
            found.append(rung)
            rung *= self.reduction_factor
        return tuple(found)

    def goes_on(self, value: float, others: list[float], mode: str) -> bool:
        """Whether a trial goes on from a rung.

        Args:
            value: that it has there.
            others: values of those that were there before it.
            mode: which way is better.
        """
        better = sum(other < value if mode == "min" else other > value for other in others)
        return better < max(1, (len(others) + 1) // self.reduction_factor)


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Args:
        trials: all of them.
        metric: name in ``METRICS``.
        mode: which way is better.
        asha: which trials end early; None lets all of them train to their end.
    """

    trials: tuple[Trial, ...]
    metric: str = "held_out_loss"
    mode: str = "min"
    asha: Asha | None = None

    def __post_init__(self) -> None:
        if self.metric.startswith("test"):
            raise ConfigError(
                f"metric: {self.metric!r} is measured on the test samples. What is chosen by them is better on them "
                f"than on any others. Choose by {', '.join(METRICS)}."
            )
        if self.metric not in METRICS:
            raise ConfigError(f"There is no metric {self.metric!r}. {closest(self.metric, METRICS)}")
        if self.mode not in MODES:
            raise ConfigError(f"There is no mode {self.mode!r}. {closest(self.mode, MODES)}")
        if self.asha is not None and self.metric not in DURING:
            raise ConfigError(
                f"asha stops trials by what they have reached so far, which {self.metric} does not tell. Take the "
                f"metric {' or '.join(DURING)}, or leave asha out."
            )
        if self.asha is not None and any(len(self.values(name)) > 1 for name in PROBLEM):
            raise ConfigError(
                "asha compares the losses of trials, but those of different data cannot be compared. Make a sweep of "
                "each, or leave asha out."
            )

    def values(self, name: str) -> list[Any]:
        """The different values of an option over all trials, as they come."""
        found: list[Any] = []
        for trial in self.trials:
            if (value := flat(trial.values).get(name)) not in found:
                found.append(value)
        return found


PROBLEM = ("data", "label", "task")
"""Options that say what is learned: losses of different ones cannot be compared."""


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, growth settings as ``growth.NAME``."""
    growth = {f"growth.{name}": value for name, value in values.get("growth", {}).items()}
    return {name: value for name, value in values.items() if name != "growth"} | growth


def comparable(value: float | None, mode: str) -> float:
    """A value that can be compared with others: one that is not finite is the worst."""
    if value is not None and math.isfinite(value):
        return value
    return WORST if mode == "min" else -WORST
