"""What a sweep says of its settings: how each did over its seeds, and what each value of a setting goes with."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from esper.evaluation.sweep.plan import PROBLEM, Trial, comparable
from esper.evaluation.sweep.record import Sweep

SEED = "seed"


@dataclass(frozen=True)
class Configuration:
    """Trials that differ in their seed alone.

    Args:
        parameters: what they share, without what is learned.
        trials: all of them.
        finished: those that trained to their end.
        values: of the metric, of the finished ones.
    """

    parameters: dict[str, Any]
    trials: tuple[Trial, ...]
    finished: tuple[Trial, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the metric over its finished seeds; there is at least one."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Effect:
    """What the metric was at the values of one parameter, whatever the others were.

    Args:
        name: of the parameter.
        by_value: finished trials with their metric, by value; numbers rising.
    """

    name: str
    by_value: tuple[tuple[Any, tuple[tuple[Trial, float], ...]], ...]


@dataclass(frozen=True)
class Standing:
    """What is known of one problem: data and label. Values of different ones are never compared.

    Args:
        problem: as people call it; empty where a sweep has only one.
        configurations: with any finished trial: those with most finished seeds first, among these the best first.
        effects: of parameters of which more than one value is finished.
    """

    problem: str
    configurations: tuple[Configuration, ...]
    effects: tuple[Effect, ...]


def standings(sweep: Sweep) -> list[Standing]:
    """The standing of every problem, as they come."""
    problems: dict[str, list[Trial]] = {}
    for trial in sweep.plan.trials:
        name = ", ".join(str(trial.parameters[one]) for one in PROBLEM if one in trial.parameters)
        problems.setdefault(name, []).append(trial)
    return [
        Standing(name, _configurations(sweep, trials), _effects(sweep, trials)) for name, trials in problems.items()
    ]


def value(sweep: Sweep, trial: Trial) -> float:
    """The metric of a finished trial; the worst where it is not finite."""
    return comparable(sweep.outcomes[trial.number].measures[sweep.plan.metric], sweep.plan.mode)


def _configurations(sweep: Sweep, trials: list[Trial]) -> tuple[Configuration, ...]:
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        alike.setdefault(repr(_shared(trial)), []).append(trial)
    found = []
    for group in alike.values():
        finished = _finished(sweep, group)
        if finished:
            values = tuple(value(sweep, one) for one in finished)
            found.append(Configuration(_shared(group[0]), tuple(group), tuple(finished), values))
    sign = 1 if sweep.plan.mode == "min" else -1
    return tuple(sorted(found, key=lambda one: (-len(one.finished), sign * one.mean)))


def _shared(trial: Trial) -> dict[str, Any]:
    return {name: one for name, one in trial.parameters.items() if name != SEED and name not in PROBLEM}


def _effects(sweep: Sweep, trials: list[Trial]) -> tuple[Effect, ...]:
    finished, found = _finished(sweep, trials), []
    for name in (name for name in trials[0].parameters if name not in PROBLEM):
        groups: dict[str, tuple[Any, list[tuple[Trial, float]]]] = {}
        for trial in finished:
            one = trial.parameters[name]
            groups.setdefault(repr(one), (one, []))[1].append((trial, value(sweep, trial)))
        if len(groups) > 1:
            by_value = [(one, tuple(points)) for one, points in groups.values()]
            found.append(Effect(name, tuple(sorted(by_value, key=_rising) if _are_numbers(by_value) else by_value)))
    return tuple(found)


def _finished(sweep: Sweep, trials: list[Trial]) -> list[Trial]:
    over = {trial.number for trial in sweep.of("finished")}
    return [trial for trial in trials if trial.number in over]


def _are_numbers(by_value: Iterable[tuple[Any, Any]]) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one, _ in by_value)


def _rising(group: tuple[Any, Any]) -> float:
    return float(group[0])
