"""A rank that only runs arms: it has the objects of the run, and is sent the run, its steps, and whose arm it is."""

import time
import traceback
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any

from esper.contracts.errors import RankError
from esper.runtime.judging.judge import Measurement
from esper.runtime.record.books import Books
from esper.runtime.run import Run
from esper.runtime.state.batch_store import ReplayError, put_together
from esper.runtime.state.module_state import STREAMS
from esper.runtime.state.random_state import as_seen_from
from esper.runtime.trying.accounts import Account
from esper.runtime.trying.arms import Arms, Source, arm_steps
from esper.runtime.trying.parcels import Gone, Line, Parcel
from esper.runtime.trying.replay import Round
from esper.runtime.trying.rounds import Rounds
from esper.runtime.trying.steps import Step

PULSE_S = 1.0
"""So often the run is told how far an arm has come."""


class ArmRank:
    """Runs arms for the run on rank 0.

    Args:
        run: this rank's own.
        rounds: its rounds.
        line: to rank 0.
    """

    def __init__(self, run: Run, rounds: Rounds, line: Line) -> None:
        self._run, self._rounds, self._line = run, rounds, line
        self._device = next(run.model.parameters()).device
        self._window: dict[str, Any] = {}

    def serve(self) -> None:
        """Run arms until the run is over.

        Raises:
            RankError: if the run ends in another way than by ``finish``.
        """
        what, value = self._next()
        while what != "close":
            try:
                self._take(what, value)
            except _OtherOrderError as order:
                what, value = order.args
            else:
                what, value = self._next()
        self._line.close()

    def _next(self, timeout: float | None = None) -> tuple[str, Any]:
        message = self._line.next(timeout)
        if isinstance(message, Gone):
            raise RankError("The run on rank 0, whose arms this rank runs, has ended without session.finish().")
        what, value = message
        return what, value

    def _take(self, what: str, value: Any) -> None:
        if what == "window":
            self._open(value)
        elif what == "arm":
            self._run_arm(value)
        elif what == "drop":
            self._rounds.current, self._window = None, {}
        elif (now := self._rounds.current) is not None:
            self._add(now, what, value)

    def _open(self, state: dict[str, Any]) -> None:
        """Begin a round as the run has it."""
        self._window = state
        self._own_streams(state["round"]["start"]["clock"]["random"])
        for changes in state["round"]["modules"]:
            self._own_streams(changes.get(STREAMS, {}))
        batches = [put_together(one) for one in state["round"]["batches"]]
        self._rounds.current = Round.from_dict(state["round"] | {"batches": batches}, self._run.batch_store())

    def _add(self, now: Round, what: str, value: Any) -> None:
        """Take in more of the window."""
        if what == "step":
            self._own_streams(value["streams"])
            if (facts := value["facts"]) is not None:
                facts = now.modules.before(len(now.modules.changes) - 1) | facts
                facts.pop(STREAMS, None)
            now.remember(Step(**value | {"batch": put_together(value["batch"]), "facts": facts}))
        else:
            twin, now.twin_steps = value
            now.twin = Measurement(**twin)

    def hear(self, now: Round, timeout: float) -> bool:
        """Take in what has come of the window; whether anything has.

        Raises:
            _OtherOrderError: if it was something else, so that the arm under way is not wanted any more.
        """
        try:
            what, value = self._next(timeout)
        except Empty:
            return False
        if what not in ("step", "twin"):
            raise _OtherOrderError(what, value)
        self._add(now, what, value)
        return True

    def _run_arm(self, candidate: int) -> None:
        now = self._rounds.current
        assert now is not None
        try:
            try:
                result = self._outcome(now, candidate, self._window["forecast"])
            except _ForetoldError:
                result = self._outcome(now, candidate, None)
        except ReplayError as error:
            result = {"unlike": str(error)}
        except Exception as error:  # passed on: the run raises it
            if isinstance(error, _OtherOrderError | RankError):
                raise
            result = {"error": repr(error), "traceback": traceback.format_exc()}
        self._line.send(Parcel.of(("result", candidate, result)))

    def _outcome(self, now: Round, candidate: int, forecast: Sequence[int] | None) -> dict[str, Any]:
        """Run an arm from its beginning."""
        run, state = self._run, self._window
        run.books = Books.from_dict(state["books"])
        run.tracing.load_state_dict(state["tracing"])
        run.costs.load_state_dict(state["costs"])
        run.editing.is_known = state["edits_batches"]
        run.journal.gather()
        now.rewind()
        one, account = run.books.alive[candidate], Account(run)
        told = time.monotonic()

        def after_step(now: Round) -> None:
            nonlocal told
            while self.hear(now, 0):
                pass
            if time.monotonic() - told > PULSE_S:
                told = time.monotonic()
                self._tell_progress(candidate, now, account)

        source = _Coming(self, forecast, lambda: self._tell_progress(candidate, now, account))
        outcome = Arms(run, after_step, source).take(now, one)
        ended = {"loss": outcome.loss, "has_passed": outcome.has_passed, "is_beaten": outcome.is_beaten}
        return account.told(one) | ended | {"body": run.snapshots.body() if outcome.has_passed else None}

    def _tell_progress(self, candidate: int, now: Round, account: Account) -> None:
        self._line.send(Parcel.of(("progress", candidate, now.arm_step, now.arm_steps, account.arm_flops)))

    def _own_streams(self, streams: dict[str, Any]) -> None:
        """Of several devices, the run and its arms each use their own."""
        as_seen_from(streams, self._window["device"], self._device.index)


class _Coming(Source):
    """A window that the run is still making.

    Args:
        rank: hears of it.
        forecast: what its steps will cost; None if nobody knows.
        pulse: tells the run that this rank is waiting.
    """

    def __init__(self, rank: ArmRank, forecast: Sequence[int] | None, pulse: Callable[[], None]) -> None:
        self._rank, self._forecast, self._pulse = rank, forecast, pulse
        self._foretold: tuple[int, int, int] | None = None

    def await_step(self, now: Round) -> None:
        """The next one; all of them, where nobody knows how many steps the arm has."""
        knows_length = now.is_at_equal_steps or self._forecast is not None
        self._await(now, lambda: len(now.batches) >= (now.arm_step + 1 if knows_length else now.num_steps))

    def await_end(self, now: Round) -> None:
        self._await(now, lambda: len(now.batches) == now.num_steps)
        if self._foretold is not None:
            first_flops, accumulate, steps = self._foretold
            if arm_steps(now, first_flops, now.flops, accumulate) != steps:
                raise _ForetoldError

    def await_twin(self, now: Round) -> Measurement:
        self._await(now, lambda: now.twin is not None)
        return super().await_twin(now)

    def steps(self, now: Round, first_flops: int, accumulate: int) -> int:
        if len(now.flops) == now.num_steps:
            return super().steps(now, first_flops, accumulate)
        expected = self._forecast or [0] * now.num_steps  # at equal steps only their number counts
        steps = arm_steps(now, first_flops, expected, accumulate)
        self._foretold = first_flops, accumulate, steps
        return steps

    def _await(self, now: Round, is_there: Callable[[], bool]) -> None:
        while not is_there():
            if not self._rank.hear(now, PULSE_S):
                self._pulse()


class _OtherOrderError(Exception):
    """Something else than the arm under way is wanted."""


class _ForetoldError(Exception):
    """The steps of the window have cost something else than was foretold, so that the arm had a wrong length."""
