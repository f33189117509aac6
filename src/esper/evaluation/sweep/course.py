"""A sweep under way: what is heard of its trials, and what they are answered."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from esper.evaluation.sweep.plan import Trial, comparable
from esper.evaluation.sweep.record import Outcome, Report, Sweep, write

Work = Callable[[Trial, Callable[[Mapping[str, Any]], bool]], Outcome]
"""Runs a trial, in whatever process. It tells its measures at every rung, and ends where the answer is False."""


class Engine(Protocol):
    """What runs trials: each of them until the course has heard its outcome."""

    def __call__(self, work: Work, trials: list[Trial], workers: int, course: "Course") -> None: ...


class Course:
    """Writes down all that is heard, at once, so that a sweep goes on from there wherever it was cut.

    Args:
        sweep: at its start, or where it goes on.
        directory: of the sweep.
        on_end: hears of every trial that is over.
    """

    def __init__(self, sweep: Sweep, directory: Path, on_end: Callable[[Sweep, Trial], None]) -> None:
        self.sweep, self.directory, self._on_end = sweep, directory, on_end
        write(directory, sweep)

    def judged(self, number: int, measures: Mapping[str, Any]) -> bool:
        """A trial has reached a rung; gives whether it goes on. One that comes a second time is told the same."""
        plan, at_rung = self.sweep.plan, self._at(measures["epochs"])
        assert plan.asha is not None
        if number in at_rung:
            return at_rung[number].goes_on
        values = [one.value for one in at_rung.values()]
        goes_on = plan.asha.goes_on(comparable(measures[plan.metric], plan.mode), values, plan.mode)
        self.noted(number, measures, goes_on=goes_on)
        return goes_on

    def noted(self, number: int, measures: Mapping[str, Any], *, goes_on: bool = True) -> None:
        """A trial has reached a rung, and others judge it."""
        plan, epoch = self.sweep.plan, measures["epochs"]
        if number not in self._at(epoch):
            report = Report(number, epoch, comparable(measures[plan.metric], plan.mode), goes_on)
            self._note(replace(self.sweep, reports=(*self.sweep.reports, report)))

    def _at(self, epoch: int) -> dict[int, Report]:
        return {one.number: one for one in self.sweep.reports if one.epoch == epoch}

    def ended(self, number: int, outcome: Outcome) -> None:
        """A trial is over."""
        self._note(replace(self.sweep, outcomes={**self.sweep.outcomes, number: outcome}))
        self._on_end(self.sweep, self.sweep.plan.trials[number])

    def _note(self, sweep: Sweep) -> None:
        self.sweep = sweep
        write(self.directory, sweep)


def stopped(measures: Mapping[str, Any]) -> Outcome:
    """Of a trial that was stopped at a rung, with what it told there."""
    return Outcome("stopped", measures, f"behind others after {measures['epochs']} epochs")
