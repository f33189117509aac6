"""Makes it so: begins rollouts, looks at runs, sets the flag, and writes down why.

What was decided is written before the flag is changed, and that it was changed after it. A process may die at any
point: the next one goes on from the lines.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esper.contracts.errors import BusUnavailableError, ConfigError
from esper.evaluation.rollout import audit
from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.engine import Decision, decide, settled
from esper.evaluation.rollout.health import RunHealth, Source
from esper.evaluation.rollout.plan import FINEST, Terms
from esper.evaluation.rollout.stores import Store
from esper.flags.lock import held

_BRAKE_WAITS_S = 10.0


class Rollout:
    """The rollout of one directory.

    Args:
        directory: with the audit file and the locks.
        store: of the flag.
        clock: seconds since 1970.
    """

    def __init__(self, directory: Path, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._directory, self._store, self._clock = directory, store, clock

    def operating(self) -> AbstractContextManager[None]:
        """Keep other operators from it. :meth:`take_back` does not ask for it: the brake is for everybody.

        Raises:
            ConfigError: if there is another operator.
        """
        return held(self._directory / "operator.lock", f"the rollout in {self._directory}")

    def start(self, terms: Terms) -> State:
        """Begin, with the first step of the plan.

        Raises:
            ConfigError: as :meth:`check_start`, or if there is another operator.
        """
        self.check_start(terms)
        self._directory.mkdir(parents=True, exist_ok=True)
        with self.operating(), self._changing():
            now = self.check_start(terms)
            self._write({"event": "started", "terms": asdict(terms), "share_before": now})
            return self._set(self._read())

    def check_start(self, terms: Terms) -> float:
        """Refuse a rollout that cannot begin here.

        Returns:
            The share of models for which the flag is on, in percent.

        Raises:
            ConfigError: if the directory holds a rollout of another flag or one that goes on, or the flag is on for
                more than the plan begins with.
        """
        now = self._store.share(terms.flag)
        _check_free(audit.read(self._directory), terms, self._directory)
        if now > terms.plan[0]:
            raise ConfigError(
                f"{terms.flag} is on for {now:g} % in {terms.flags}, and the plan begins with {terms.plan[0]:g}: it "
                "would fall. Begin with more, or set the flag to less first."
            )
        return now

    def look(self, source: Source, *, dry_run: bool = False) -> tuple[State, Decision | None]:
        """Look at runs once, and do what follows. What another process left half done is done first.

        Args:
            source: of the runs.
            dry_run: only tell what would be done.

        Returns:
            Where the rollout stands, and what was decided; None where it is over, or a dry run finds the flag unset.

        Raises:
            ConfigError: if there is no rollout, or somebody else has changed the flag.
        """
        state = self._read()
        if not dry_run and not state.is_set:
            with self._changing():
                state = self._set(self._read())
        if state.outcome != "running" or not state.is_set:
            return state, None
        self._check_share(state)
        runs, silence = self._heard(state, source)
        decision = decide(state, runs, self._clock())
        if dry_run:
            return state, decision
        with self._changing():
            state = self._read()
            if state.outcome != "running":  # taken back by hand in the meantime
                return state, None
            before = state.why, (state.last_look or {}).get("silence")
            if decision.verdict != "hold" or decision.units or (decision.why, silence) != before:
                self._write({**decision.line(), "silence": silence})
            return self._set(self._read()), decision

    def take_back(self, why: str) -> State:
        """Turn the flag off and end the rollout, by hand; one that is completed too.

        Raises:
            ConfigError: if there is no rollout.
        """
        with self._changing():
            if self._read().outcome != "rolled back":
                self._write({"event": "taken_back", "verdict": "rollback", "why": why})
            return self._set(self._read())

    def _changing(self) -> AbstractContextManager[None]:
        return held(self._directory / "change.lock", f"the rollout in {self._directory}", _BRAKE_WAITS_S)

    def _read(self) -> State:
        return begun(self._directory)

    def _write(self, line: dict[str, Any]) -> None:
        event = {"event": line["event"], "time": round(self._clock(), 3)}
        audit.write(self._directory, event | line)

    def _set(self, state: State) -> State:
        """Make the flag what was decided, and write that down."""
        if state.is_set:
            return state
        flag = state.terms.flag
        if state.outcome == "rolled back":
            self._store.off(flag)
        else:
            self._check_share(state)
            self._store.set_share(flag, state.percent)
        self._write({"event": "set", "percent": state.percent})
        return self._read()

    def _check_share(self, state: State) -> None:
        flag, now = state.terms.flag, self._store.share(state.terms.flag)
        expected = {state.percent} if state.is_set else {state.percent, state.share_before}
        if all(abs(now - percent) > 0.5 / FINEST for percent in expected):
            raise ConfigError(
                f"{flag} is on for {now:g} % in {state.terms.flags}, where this rollout set {state.percent:g}: "
                f"somebody else has changed it. End the rollout by 'esper rollout rollback --state {self._directory}', "
                f"or set it back by 'esper flags set {flag} {state.percent:g}% --flags {state.terms.flags}'."
            )

    def _heard(self, state: State, source: Source) -> tuple[list[RunHealth], str | None]:
        """Runs, and why there are none where the source is away: that is a lack of data, not an error."""
        try:
            return source.runs(state.terms.flag, state.began, settled(state)), None
        except (OSError, BusUnavailableError) as error:
            return [], str(error)


def _check_free(state: State | None, terms: Terms, directory: Path) -> None:
    """Refuse to begin where another rollout goes on.

    Raises:
        ConfigError: saying which.
    """
    if state is None:
        return
    if state.terms.flag != terms.flag:
        raise ConfigError(
            f"{directory} holds a rollout of {state.terms.flag}, not of {terms.flag}. Name another directory."
        )
    if state.outcome == "running":
        raise ConfigError(
            f"The rollout of {terms.flag} in {directory} is under way, at {state.percent:g} %. Go on with it by "
            f"'esper rollout advance --state {directory}', or end it by 'esper rollout rollback --state {directory}'."
        )


def begun(directory: Path) -> State:
    """Where the rollout of a directory stands.

    Raises:
        ConfigError: if there has been none.
    """
    state = audit.read(directory)
    if state is None:
        raise ConfigError(f"There is no rollout in {directory}. Begin one by 'esper rollout start'.")
    return state
