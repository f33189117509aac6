"""A round of growth: the run trains on as its own twin, candidates replay it in arms, one that beats it is adopted.

At the start of a round the run is captured and simply goes on; its batches and learning rates are remembered. At the
end of this window candidates start from the capture, each in an arm of its own, on the same batches, and are judged
against the run on the gate samples. The first that beats it is adopted, or the best of all, as the configuration says.
If none does, the run is restored to the byte and has lost nothing but the arms' FLOPs. No arm is tried where the run
has memorised its samples in the window: almost anything that acts makes its held-out loss lower for a while then.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

from esper.checkpoint.packed import Packed
from esper.checkpoint.tree import clone
from esper.contracts.events import RoundBegun, RoundEnded
from esper.contracts.lifecycle import LIVE, State
from esper.runtime.judging.weight_mean import WeightMean, marks
from esper.runtime.record.books import Lifecycle, numbers
from esper.runtime.run import Run
from esper.runtime.state.batch_store import ReplayError
from esper.runtime.state.snapshot import Kept
from esper.runtime.trying.arms import Arms, Outcome
from esper.runtime.trying.on_devices import OnDevices
from esper.runtime.trying.parcels import Line
from esper.runtime.trying.replay import OTHER_GROUPS, Round
from esper.runtime.trying.runners import Runner
from esper.runtime.trying.side_by_side import SideBySide
from esper.runtime.trying.steps import Step
from esper.runtime.watching.recovery import Recovery
from esper.tamiyo.timing import memorises

BEATEN_ARMS = 2
"""After so many arms whose loss is no lower than the twin's, the others are not tried."""

NOT_TRIED = "not tried: "
"""How the reason begins of candidates that had no arm."""


class Rounds:
    """Runs the rounds of a run.

    Args:
        run: the run.
        recovery: keeps the run as it was before each adoption.
        checkpoint: called where a round can be resumed: after every arm, and now and then within one.
        checkpoint_steps: steps of an arm between two checkpoints; None checkpoints after arms only.
        lines: to ranks that run arms.

    Attributes:
        arms: trains and judges arms in the run's objects.
        runner: where arms run.
        current: the round under way; None if none is.
    """

    def __init__(
        self,
        run: Run,
        recovery: Recovery,
        checkpoint: Callable[[], None],
        checkpoint_steps: int | None,
        lines: Sequence[Line] = (),
    ) -> None:
        self._run, self._recovery = run, recovery
        self._checkpoint, self._checkpoint_steps = checkpoint, checkpoint_steps
        self.arms = Arms(run, self._after_arm_step)
        kinds: dict[str, Callable[..., Runner]] = {
            "in_turn": Runner,
            "side_by_side": SideBySide,
            "devices": partial(OnDevices, lines=lines),
        }
        self.runner = kinds[run.config.arms](run, self.arms, self._is_decided)
        self.current: Round | None = None

    @property
    def is_due(self) -> bool:
        """Whether the window is over and arms are to be run, or to be run on."""
        now = self.current
        return now is not None and (now.run is not None or self._run.step >= now.end_step)

    def begin(self, candidates: list[Lifecycle]) -> None:
        """Capture the run; from here on it is the twin of its candidates, which train in isolation meanwhile."""
        run = self._run
        run.books.rounds_begun += 1
        if run.config.objective != "none":
            run.seeds.promote_all(candidates, State.TRAINING, {one.number: {"has_slot": True} for one in candidates})
            for one in candidates:
                run.begin_incubation(one)
        window = max(1, round(run.config.round_fraction * run.planned_steps))
        self.current = Round(
            number=run.books.rounds_begun,
            start_step=run.step,
            end_step=run.step + window,
            boundaries=len(run.books.select_losses),
            candidates=[one.number for one in candidates],
            live=numbers(run.in_state(*LIVE)),
            start=run.captures.keep(),
            batches=run.batch_store(),
            is_at_equal_steps=self._are_colonies(candidates) or run.config.compare == "steps",
        )
        run.journal.write(
            RoundBegun(
                step=run.step,
                round=self.current.number,
                end_step=self.current.end_step,
                candidates=[one.describe() for one in candidates],
            )
        )
        self.runner.begin(self.current)

    def go_on(self, now: Round | None) -> None:
        """With a round that another process has begun."""
        self.current = now
        if now is not None:
            self.runner.begin(now)

    def remember(self, step: Step) -> None:
        """One step of the twin."""
        now = self.current
        assert now is not None
        now.remember(step)
        self.runner.remember(now, step)
        self._take_mean(now)
        self._abandon_if_void(now)

    def _take_mean(self, now: Round) -> None:
        """Of the run's weights; kept at the marks of the window, where arms may have fewer steps than the run."""
        run, done, window = self._run, len(now.batches), now.num_steps
        end = next(mark for mark in ([window] if now.is_at_equal_steps else marks(window)) if mark >= done)
        now.run_mean.after_step(run.model, done, end)
        if done == end < window:
            now.marks[done] = run.snapshots.put_aside(clone(now.run_mean.to_dict()))
            now.run_mean = WeightMean()

    def abandon(self, reason: str, prefix: str = "") -> None:
        """End a round without a verdict; its candidates are cancelled for the same reason, told behind ``prefix``."""
        now = self.current
        if now is None:
            return
        self._run.journal.write(RoundEnded(step=self._run.step, round=now.number, adopted=None, reason=reason))
        self.current = self._run.arm = None
        self.runner.drop()
        self._run.seeds.move_all(self._waiting(now), State.CANCELLED, prefix + reason)

    def _abandon_if_void(self, now: Round) -> None:
        if numbers(self._run.in_state(*LIVE)) != now.live:
            self.abandon("another graft was removed during the round")
        elif now.has_other_groups(self._run.trainer.num_groups):
            self.abandon(OTHER_GROUPS)
        elif not self._waiting(now):
            self.abandon("no candidate is left")

    def _waiting(self, now: Round) -> list[Lifecycle]:
        """Candidates that were not taken back."""
        alive = self._run.books.alive
        return [alive[number] for number in now.candidates if number in alive]

    def _are_colonies(self, candidates: Sequence[Lifecycle]) -> bool:
        """They take as many steps as the run, and so gain nothing by having fewer."""
        return all(self._run.places[one.layer_id].kind == "colony" for one in candidates)

    def _memorises(self, now: Round) -> bool:
        """Whether the run does, by the boundaries within its window."""
        books = self._run.books
        if self._are_colonies(self._waiting(now)):
            return False
        return memorises(books.train_losses, books.select_losses, len(books.select_losses) - now.boundaries)

    def judge(self) -> None:
        """Run all arms that are left, then adopt one or refuse all. Goes on where it was cut.

        An error in an arm ends the round and is raised; the caller's model is the run then, as after an interruption.
        """
        run, now = self._run, self.current
        assert now is not None
        if now.has_other_groups(run.trainer.num_groups):  # given after its arms were interrupted
            self.abandon(OTHER_GROUPS)
            return
        if now.run is None and self._memorises(now):
            self.abandon("the run memorises its samples", NOT_TRIED)
            return
        try:
            if now.run is None:
                self._end_window(now)
        except ReplayError as error:
            self.abandon(str(error))
            return
        try:
            try:
                self._run_arms(now)
            finally:
                now.restore_run(run)
                for one in self._waiting(now):
                    self._rest(now, one)
                now.rewind()
        except ReplayError as error:
            self.abandon(str(error))
            return
        except Exception as error:  # passed on; an interruption leaves the round standing, to be resumed
            self.abandon(f"an arm failed: {error!r}")
            raise
        self.end(now)

    def _end_window(self, now: Round) -> None:
        run, waiting = self._run, self._waiting(now)
        now.candidates = [one.number for one in waiting]
        for one in waiting:
            if one.state is State.TRAINING:  # arms start from the beginning of the window, but with what it taught
                run.end_incubation(one)
                now.start["body"] = run.snapshots.renew(now.start["body"], one.layer_id, "incubation")
        now.flops = run.ranks.same(now.flops, "FLOPs of a window")
        self._measure_twin(now)
        now.end(run)

    def _measure_twin(self, now: Round) -> None:
        """The run at the end of its window; or at the mark before, if it stood better there, and so on.

        At equal FLOPs an arm takes fewer steps than the run. Where more of them no longer help, it would win by that
        alone. Where they do help, this takes one evaluation more.
        """
        run, part = self._run, self._run.judge.split.gate
        now.twin, now.twin_steps = run.evaluations.measure_mean(now.run_mean, now.batches), len(now.batches)
        for mark, kept in sorted(now.marks.items(), reverse=True):
            mean = WeightMean(**(kept.read() if isinstance(kept, Packed) else kept))
            earlier = run.evaluations.measure_mean(mean, now.batches)
            if not earlier.loss(part) < now.twin.loss(part):
                break
            now.twin, now.twin_steps = earlier, mark
        now.marks = {}

    def _run_arms(self, now: Round) -> None:
        with closing(self.runner.outcomes(now)) as outcomes:
            for one, outcome in outcomes:
                self._settle(now, one, outcome)
                self._run.inbox.safe_point()
                now.arm += 1
                now.rewind()
                if now.arm < len(now.candidates):
                    self._rest(now, one)
                    self._checkpoint()

    def _after_arm_step(self, now: Round) -> None:
        self._run.inbox.safe_point()
        every, steps = self._checkpoint_steps, now.arm_steps
        if every and now.arm_step % every == 0 and steps is not None and now.arm_step < steps:
            self._checkpoint()

    def _is_decided(self, now: Round) -> bool:
        """Whether those that are left are not tried."""
        return self._run.config.choice == "first" and (now.best is not None or now.beaten >= BEATEN_ARMS)

    def _settle(self, now: Round, one: Lifecycle, outcome: Outcome) -> None:
        """Remember what an arm has come to, before the next one runs."""
        now.beaten += outcome.is_beaten
        if not outcome.has_passed:
            return
        if now.best is None or (self._run.config.choice == "best" and outcome.loss < now.best["loss"]):
            now.best = {"lifecycle": one.number, "loss": outcome.loss, "body": outcome.keep()}

    def _rest(self, now: Round, one: Lifecycle) -> None:
        """A candidate is in the run what it was all through the window."""
        if self._run.config.objective == "none":
            one.state, one.since_step = State.GERMINATED, one.born_step
        else:
            one.state, one.since_step = State.TRAINING, now.start_step

    def end(self, now: Round) -> None:
        """Back to the run as it was at the end of its window, or to the adopted arm's body under the run's clock."""
        run, best = self._run, now.best
        self.current = run.arm = None
        self.runner.drop()
        tried = now.candidates[: now.arm]
        why = "those before it were no better than the twin" if best is None else "one before it beat the twin"
        waiting = self._waiting(now)
        lost = [one for one in waiting if one.number in tried and (best is None or one.number != best["lifecycle"])]
        untried = [one for one in waiting if one.number not in tried]
        run.seeds.move_all(lost, State.CULLED, "lost_round")
        run.seeds.move_all(untried, State.CANCELLED, NOT_TRIED + why)
        winner = None if best is None else run.books.alive[best["lifecycle"]]
        if best is not None and winner is not None:
            self._adopt(now, winner, best["body"])
        run.journal.write(
            RoundEnded(
                step=run.step,
                round=now.number,
                adopted=None if winner is None else winner.describe(),
                reason="no candidate beat the twin" if winner is None else "beat the twin",
            )
        )

    def _adopt(self, now: Round, winner: Lifecycle, body: Kept) -> None:
        run = self._run
        self._recovery.remember_before(run.evaluations.measure(), now.live)
        run.captures.take_over(body, seeds_of=(winner.number,))
        winner.state, winner.since_step = State.EVALUATING, run.step
        run.seeds.promote(winner, State.FINE_TUNING, is_joint=False, **winner.gates["twin"])
