"""Decides what becomes of a rollout, from what is known: a pure function."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.compare import Comparison, compare
from esper.evaluation.rollout.health import DAMAGE, ERRORS, PERFORMANCE, RunHealth, Unit, units

Verdict = Literal["hold", "promote", "complete", "rollback"]
COHORTS = {True: "on", False: "off"}


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why.

    Args:
        verdict: ``hold`` changes nothing, ``promote`` takes the next step of the plan, ``complete`` ends the rollout,
            ``rollback`` turns the flag off.
        why: in words.
        good: runs of this step that told how well they do, by cohort.
        comparisons: of all measures.
        units: what has become known with this look.
        heard: when each cohort told anything last; seconds since 1970.
    """

    verdict: Verdict
    why: str
    good: dict[bool, int]
    comparisons: list[Comparison]
    units: list[Unit]
    heard: dict[bool, float]

    def line(self) -> dict[str, Any]:
        """Of the audit file."""
        return {
            "event": "look",
            "verdict": self.verdict,
            "why": self.why,
            "good": {COHORTS[is_on]: count for is_on, count in self.good.items()},
            "measures": [asdict(one) for one in self.comparisons],
            "units": [asdict(unit) for unit in self.units],
            "heard": {COHORTS[is_on]: time for is_on, time in self.heard.items()},
        }


def decide(state: State, runs: Iterable[RunHealth], now: float) -> Decision:
    """Look at runs once.

    Args:
        state: where the rollout stands; it is not changed.
        runs: what the source tells; those of which all is known may be left out.
        now: seconds since 1970.
    """
    criteria, heard = state.terms.criteria, dict(state.heard)
    new = []
    for run in runs:
        heard[run.is_on] = max(min(run.last, now), heard.get(run.is_on, 0.0))
        new += [unit for unit in units(run, now, criteria) if (unit.measure, run.run) not in state.counted]
    known = state.units + new
    good = _good(known[state.units_before :])
    comparisons = compare(known, criteria)
    verdict, why = _verdict(state, known, good, comparisons, heard, now)
    return Decision(verdict, why, good, comparisons, new, heard)


def settled(state: State) -> set[str]:
    """Runs of which no more can become known: those that have ended, and those with damaged data."""
    return {run for measure, run in state.counted if measure in (ERRORS, DAMAGE)}


def _verdict(
    state: State,
    known: Collection[Unit],
    good: dict[bool, int],
    comparisons: list[Comparison],
    heard: dict[bool, float],
    now: float,
) -> tuple[Verdict, str]:
    criteria, is_last = state.terms.criteria, state.step == len(state.terms.plan) - 1
    needed = {True} if state.percent == 100 else {True, False}
    if harm := _harm(state, known, comparisons, heard, needed, now):
        return "rollback", harm
    if wanting := [is_on for is_on in COHORTS if is_on in needed and good[is_on] < criteria.min_runs]:
        told = " and ".join(
            f"{good[is_on]} of {criteria.min_runs} runs with the flag {COHORTS[is_on]}" for is_on in wanting
        )
        return "hold", f"waits for data: {told} have told how well they do since this step began"
    if now - state.step_began < criteria.min_seconds:
        return "hold", f"waits for time: a step lasts {criteria.min_seconds:g} s at least"
    if doubtful := [one for one in comparisons if not one.looks_fine]:
        if False not in needed and now - state.step_began > criteria.patience_s:
            return (
                "rollback",
                f"in doubt for too long, and no runs with the flag off are left to clear it: {doubtful[0]}",
            )
        return "hold", f"waits for certainty: {doubtful[0]}"
    if is_last:
        return "complete", "all steps are taken"
    return "promote", f"nothing speaks against {state.terms.plan[state.step + 1]:g} %"


def _harm(
    state: State,
    known: Collection[Unit],
    comparisons: list[Comparison],
    heard: dict[bool, float],
    needed: set[bool],
    now: float,
) -> str | None:
    """Why the rollout must be taken back; None if nothing says so."""
    criteria = state.terms.criteria
    if worse := [one for one in comparisons if one.is_harm]:
        return f"worse: {worse[0]}"
    damaged, heard_of = [unit for unit in known if unit.measure == DAMAGE and unit.is_on], _runs(known)
    if len(damaged) >= max(criteria.damaged_runs, criteria.more_errors * len(heard_of)):
        example = damaged[0]
        told = f"those of {len(damaged)} of {len(heard_of)} runs with the flag on"
        return f"data are corrupt: {told}; of {example.run}, {example.why}"
    for is_on in sorted(needed, reverse=True):
        if now - max(state.step_began, heard.get(is_on, 0.0)) > criteria.patience_s:
            return f"data are missing: runs with the flag {COHORTS[is_on]} tell nothing for {criteria.patience_s:g} s"
    return None


def _runs(known: Iterable[Unit]) -> set[str]:
    return {unit.run for unit in known if unit.is_on}


def _good(of_step: Iterable[Unit]) -> dict[bool, int]:
    runs = {(unit.is_on, unit.run) for unit in of_step if unit.measure in PERFORMANCE}
    return {is_on: sum(one == is_on for one, _ in runs) for is_on in COHORTS}
