"""Arms on other ranks, while the run goes on: each takes the steps of the window as soon as the run has made them.

A rank that only runs arms (:mod:`esper.runtime.trying.arm_rank`) has the same objects as the run, and is sent all
else: the run as it was when the window began, then step after step. So its arm is over when the window is, or a little
later. Candidates that are left then are tried here and there at the same time. Which arms run where depends on their
order alone, so that two runs of the same kind have the same bytes, books and logs.

A rank that dies, or is not heard for too long, is not asked again; its arm is run here, in turn.
"""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from queue import Empty
from typing import Any

from torch import Tensor

from esper.contracts.errors import ArmError
from esper.contracts.events import Note
from esper.runtime.judging.weight_mean import WeightMean
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.state.batch_store import ReplayError, taken_apart
from esper.runtime.trying.accounts import Spent, take_in
from esper.runtime.trying.arms import Arms, Outcome, arm_name
from esper.runtime.trying.parcels import Gone, Line, Parcel
from esper.runtime.trying.replay import Round
from esper.runtime.trying.runners import Runner
from esper.runtime.trying.steps import Step

PULSE_S = 0.25
"""So often the run looks how far an arm has come that it waits for."""


class Helper:
    """A rank that runs arms, as the run sees it.

    Args:
        line: to it.
        rank: its number.

    Attributes:
        candidate: number of the lifecycle whose arm it runs; None if none.
        result: what that arm has come to, once it has.
        progress: steps that the arm has done, will do once that is known, and its FLOPs so far.
        is_lost: whether it is gone.
    """

    def __init__(self, line: Line, rank: int) -> None:
        self.line, self.rank = line, rank
        self.candidate: int | None = None
        self.result: dict[str, Any] | None = None
        self.progress: tuple[int, int | None, int] = (0, None, 0)
        self.is_lost = False

    def begin(self, candidate: int) -> None:
        """Let it run the arm of a candidate."""
        self.candidate, self.result, self.progress = candidate, None, (0, None, 0)
        self.line.send(Parcel.of(("arm", candidate)))

    def hear(self, timeout: float) -> None:
        """Take the next message, if one comes in time."""
        try:
            message = self.line.next(timeout)
        except Empty:
            return
        match message:
            case Gone():
                self.is_lost = True
            case "progress", self.candidate, *progress:
                self.progress = (progress[0], progress[1], progress[2])
            case "result", self.candidate, result:
                self.result = result


class OnDevices(Runner):
    """Runs arms on other ranks.

    Args:
        run: the run.
        arms: trains and judges those that run here.
        is_decided: whether the candidates of a round that are left are not tried.
        lines: to the other ranks, from rank 1 on.
    """

    def __init__(self, run: Run, arms: Arms, is_decided: Callable[[Round], bool], lines: Sequence[Line]) -> None:
        super().__init__(run, arms, is_decided)
        self._helpers = [Helper(line, rank) for rank, line in enumerate(lines, 1)]
        self._now: Round | None = None
        self._begun = Spent.by(run)

    def begin(self, now: Round) -> None:
        if self._run.config.objective == "none":  # else arms begin with what the window has taught
            self._open(now)
            for helper, number in zip(self._at_hand(), now.candidates[now.arm :], strict=False):
                helper.begin(number)

    def remember(self, now: Round, step: Step) -> None:
        if now is self._now:
            own = step.loss.clone() if isinstance(step.loss, Tensor) else step.loss  # the caller has the other
            facts = None if step.facts is None else now.modules.changes[-1]  # only what has changed, and the streams
            self._tell(("step", vars(step) | {"batch": taken_apart(step.batch), "loss": own, "facts": facts}))

    def outcomes(self, now: Round) -> Generator[tuple[Lifecycle, Outcome]]:
        if now is not self._now:
            self._open(now)
        assert now.twin is not None
        self._tell(("twin", (now.twin.to_dict(), now.twin_steps)))
        while now.arm < len(now.candidates) and not self._is_decided(now):
            for number in self._begun_ones(now) or self._wave(now):
                one, helper = self._run.books.alive[number], self._helper_of(number)
                outcome = None if helper is None else self._awaited(now, one, helper)
                yield one, self._arms.take(now, one) if outcome is None else outcome

    def drop(self) -> None:
        self._now = None
        self._tell(("drop", None))
        for helper in self._helpers:
            if helper.candidate is not None:  # cut short, and paid for nevertheless
                one = self._run.books.alive.get(helper.candidate)
                self._run.costs.charge(helper.progress[2], [one] if one else [])
            helper.candidate = None

    def close(self) -> None:
        self._tell(("close", None))
        for helper in self._helpers:
            if not helper.is_lost:
                helper.line.close()

    def _at_hand(self) -> list[Helper]:
        return [helper for helper in self._helpers if not helper.is_lost]

    def _helper_of(self, candidate: int) -> Helper | None:
        return next((helper for helper in self._at_hand() if helper.candidate == candidate), None)

    def _begun_ones(self, now: Round) -> list[int]:
        """Candidates that are left, up to the last whose arm has begun elsewhere."""
        left = now.candidates[now.arm :]
        count = max((index for index, number in enumerate(left, 1) if self._helper_of(number) is not None), default=0)
        return left[:count]

    def _tell(self, message: Any) -> None:
        parcel = Parcel.of(message)
        for helper in self._at_hand():
            helper.line.send(parcel)

    def _open(self, now: Round) -> None:
        """Send the run as it was when the window began, and the steps of the window so far."""
        run = self._run
        self._now, self._begun = now, Spent.by(run)
        state = {
            "books": run.books.to_dict(),
            "tracing": run.tracing.state_dict(),
            "costs": run.costs.state_dict(),
            "edits_batches": run.editing.is_known,
            "device": next(run.model.parameters()).device.index,
            "round": now.to_dict()
            | _NOT_SENT
            | {"batches": [*map(taken_apart, now.batches)], "first_threads": now.first_threads},
            "forecast": None if len(now.batches) else run.forecast.of(now.num_steps),
        }
        self._tell(("window", state))

    def _wave(self, now: Round) -> list[int]:
        """The next candidates, one for this process and one for each other; those of others begin."""
        left = now.candidates[now.arm :]
        helpers = self._at_hand()
        for helper, number in zip(helpers, left[1:], strict=False):
            helper.begin(number)
        return left[: 1 + len(helpers)]

    def _awaited(self, now: Round, one: Lifecycle, helper: Helper) -> Outcome | None:
        """What an arm elsewhere has come to; None if its rank is gone.

        Raises:
            ArmError: if it has failed.
            ReplayError: if it could not take the steps of the window once more.
        """
        run = self._run
        run.arm = arm_name(now, one)
        now.rewind()  # a part of an arm that ran here is done anew
        helper.line.listen()
        while helper.result is None and not helper.is_lost:
            helper.hear(PULSE_S)
            run.inbox.safe_point()
            helper.is_lost |= helper.line.is_silent
        result = helper.result
        if result is None:
            text = f"Rank {helper.rank} is not heard any more. Its arm, and those it would have run, are run in turn."
            run.journal.write(Note(step=run.step, text=text))
            return None
        helper.candidate = None
        if "unlike" in result:
            raise ReplayError(result["unlike"])
        if "error" in result:
            error = ArmError(f"The arm {run.arm} raised {result['error']} on rank {helper.rank}.")
            error.add_note(result["traceback"])
            raise error
        take_in(run, one, result, self._begun)
        kept = partial(run.snapshots.put_aside, result["body"])
        return Outcome(result["loss"], result["has_passed"], result["is_beaten"], kept)


_NOT_SENT = {"run": None, "run_facts": None, "run_mean": WeightMean().to_dict(), "marks": {}, "best": None}
"""Of a round, what only the run needs."""
