"""A round of growth: the run trains on as its own twin, candidates replay it in arms, the best is adopted.

At the start of a round the run is captured and simply goes on; its batches and learning rates are remembered. At the
end of this window every candidate starts from the capture in an arm of its own, on the same batches, and is judged
against the run on the gate samples. If none beats it, the run is restored to the byte and has lost nothing but the
arms' FLOPs.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

import torch

from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.gates import gate
from esper.runtime.books import Lifecycle, numbers
from esper.runtime.judging import Measurement, against_twin
from esper.runtime.recovery import Recovery
from esper.runtime.replay import Window, replay_step
from esper.runtime.run import Run
from esper.runtime.training import Settings

RECENT = 3
"""Points of an arm's learning curve by which it is compared halfway, of twenty in one as long as the window."""

UNJUDGED = dict.fromkeys(("twin_z", "gain", "gain_se", "has_metric", "metric_gain", "gate_loss", "twin_gate_loss"))
"""What is not known of an arm that was given up."""


@dataclass(kw_only=True)
class Round(Window):
    """A round under way; everything in it is stored with a checkpoint.

    Attributes:
        number: counts the rounds of a run from 1.
        start_step: step at which it was captured.
        end_step: step at which the arms run.
        candidates: numbers of the lifecycles on trial.
        twin: the run's evaluation at ``end_step``.
        arm: index of the candidate whose arm runs.
        arm_steps: how many steps it will take, once that is known.
        best: the best arm so far that beat the twin: its lifecycle, body and select loss.
        halfway: training loss of the arm under way, once it is half over.
        lead: the least of them among the arms that beat the twin; who is behind it halfway is given up.
    """

    number: int
    start_step: int
    end_step: int
    candidates: list[int]
    twin: Measurement | None = None
    arm: int = 0
    arm_steps: int | None = None
    best: dict[str, Any] | None = None
    halfway: float | None = None
    lead: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The round as a nested state."""
        return {**super().to_dict(), "twin": None if self.twin is None else self.twin.to_dict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        twin = None if saved["twin"] is None else Measurement(**saved["twin"])
        return super().from_dict({**saved, "twin": twin})

    def rewind(self) -> None:
        """The next arm starts from the beginning, and has to see anew how long it will be."""
        super().rewind()
        self.arm_steps = self.halfway = None

    @property
    def is_halfway(self) -> bool:
        """Whether the step just taken is the one after which an arm can be given up."""
        return self.arm_steps is not None and self.arm_step == -(-self.arm_steps // 2)

    @property
    def is_behind(self) -> bool:
        """Whether the arm under way has learned less, halfway, than one that beat the twin."""
        return self.lead is not None and self.halfway is not None and not self.halfway <= self.lead


class Rounds:
    """Runs the rounds of a run.

    Args:
        run: the run.
        recovery: keeps the run as it was before each adoption.
        checkpoint: called where a round can be resumed: after every arm, and now and then within one.
        checkpoint_steps: steps of an arm between two checkpoints; None checkpoints after arms only.
    """

    def __init__(
        self, run: Run, recovery: Recovery, checkpoint: Callable[[], None], checkpoint_steps: int | None
    ) -> None:
        self._run, self._recovery = run, recovery
        self._checkpoint, self._checkpoint_steps = checkpoint, checkpoint_steps
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
        live = numbers(run.in_state(*LIVE))  # if a listener takes one of them out now, the round is void
        if run.config.objective != "none":
            for one in candidates:
                run.seeds.promote(one, State.TRAINING, has_slot=True)
                run.begin_incubation(one)
        window = max(1, round(run.config.round_fraction * run.planned_steps))
        self.current = Round(
            number=run.books.rounds_begun,
            start_step=run.step,
            end_step=run.step + window,
            candidates=[one.number for one in candidates],
            live=live,
            start=run.capture(),
        )
        run.journal.write(
            "round_begun",
            step=run.step,
            round=self.current.number,
            end_step=self.current.end_step,
            candidates=[one.describe() for one in candidates],
        )

    def remember(self, batch: Any, settings: Settings | None, flops: int) -> None:
        """One step of the twin."""
        now = self.current
        assert now is not None
        now.remember(batch, settings, flops)
        self._abandon_if_void(now)

    def abandon(self, reason: str) -> None:
        """End a round without a verdict; its candidates are cancelled."""
        now = self.current
        if now is None:
            return
        self._run.journal.write("round_ended", step=self._run.step, round=now.number, adopted=None, reason=reason)
        self.current = self._run.arm = None
        for one in self._waiting(now):
            self._run.seeds.move(one, State.CANCELLED, reason)

    def _abandon_if_void(self, now: Round) -> None:
        if numbers(self._run.in_state(*LIVE)) != now.live:
            self.abandon("another graft was removed during the round")
        elif not self._waiting(now):
            self.abandon("no candidate is left")

    def _waiting(self, now: Round) -> list[Lifecycle]:
        """Candidates that were not taken back."""
        alive = self._run.books.alive
        return [alive[number] for number in now.candidates if number in alive]

    def judge(self) -> None:
        """Run all arms that are left, then adopt the best or refuse all. Goes on where it was cut.

        An error in an arm ends the round and is raised; the caller's model is the run then, as after an interruption.
        """
        run, now = self._run, self.current
        assert now is not None
        if now.run is None:
            waiting = self._waiting(now)
            now.candidates = [one.number for one in waiting]
            for one in waiting:
                if one.state is State.TRAINING:  # arms start from the beginning of the window, but with what it taught
                    run.end_incubation(one)
                    run.snapshots.renew(now.start["body"], one.layer_id, "incubation")
            now.twin = run.measure()
            now.run = run.capture()
        try:
            try:
                self._run_arms(now)
            finally:
                run.restore(now.run)
                for one in self._waiting(now):
                    self._rest(now, one)
                now.rewind()
        except Exception as error:  # passed on; an interruption leaves the round standing, to be resumed
            self.abandon(f"an arm failed: {error!r}")
            raise
        self._end(now)

    def _run_arms(self, now: Round) -> None:
        run = self._run
        while now.arm < len(now.candidates):
            one = run.books.alive[now.candidates[now.arm]]
            run.arm = f"round{now.number}/{one.layer_id or 'model'}/{one.blueprint}"
            if self._train_arm(now, one):
                self._judge_arm(now, one)
            else:
                self._give_up(now, one)
            now.arm += 1
            now.rewind()
            if now.arm < len(now.candidates):
                self._rest(now, one)
                self._checkpoint()

    def _rest(self, now: Round, one: Lifecycle) -> None:
        """A candidate is in the run what it was all through the window."""
        if self._run.config.objective == "none":
            one.state, one.since_step = State.GERMINATED, one.born_step
        else:
            one.state, one.since_step = State.TRAINING, now.start_step

    def _train_arm(self, now: Round, one: Lifecycle) -> bool:
        """Gives whether the arm came to its end."""
        run, config = self._run, self._run.config
        if now.arm_step == 0:
            run.restore(now.start)
            if one.state is State.GERMINATED:
                run.seeds.promote(one, State.TRAINING, has_slot=True)
            run.seeds.promote(one, State.GRAFTING)
        while now.arm_steps is None or now.arm_step < now.arm_steps:
            if now.arm_steps is None:  # the first step tells what the others will cost
                now.arm_steps = self._arm_steps(now.flops, run.cost(now.batches[0]))
            replay_step(run, now, [one])
            if now.is_halfway and len(now.curve.train_losses) >= RECENT:
                now.halfway = fmean(now.curve.train_losses[-RECENT:])
                if config.race and now.is_behind:
                    return False
            hold = max(1, int(config.hold_fraction * now.arm_steps))
            if one.state is State.GRAFTING and now.arm_step >= now.arm_steps - hold:
                place = run.places[one.layer_id]
                alpha = place.state.alpha[place.arena.grafts[one.number].seeds[0]]
                run.seeds.promote(one, State.STABILIZATION, alpha=float(alpha))
            if self._checkpoint_steps and now.arm_step % self._checkpoint_steps == 0 and now.arm_step < now.arm_steps:
                self._checkpoint()
        run.seeds.promote(one, State.EVALUATING, held_steps=run.step - one.since_step)
        return True

    def _give_up(self, now: Round, one: Lifecycle) -> None:
        """End an arm early, unjudged: one that beat the twin is ahead of it."""
        run, twin = self._run, now.twin
        assert twin is not None
        now.curve.close(run.step, run.train_flops)
        self._log_arm(now, one, twin, select_loss=None, passed=False, given_up=True, **UNJUDGED)

    def _log_arm(self, now: Round, one: Lifecycle, twin: Measurement, **judged: Any) -> None:
        run = self._run
        run.journal.write(
            "arm_ended",
            step=run.step,
            round=now.number,
            arm=run.arm,
            lifecycle=one.number,
            steps=now.arm_step,
            arm_flops=one.flops,
            twin_select_loss=twin.loss(run.judge.split.select),
            **judged,
            curve=now.curve.points(),
        )

    def _arm_steps(self, run_flops: list[int], first_flops: int) -> int:
        """Steps of an arm whose first one cost ``first_flops``; it costs more than the run's by one factor."""
        window = steps = len(run_flops)
        if self._run.config.compare == "flops":
            spent = (first_flops * flops for flops in itertools.accumulate(run_flops))
            steps = sum(flops <= run_flops[0] * sum(run_flops) for flops in spent)
        steps -= (steps - window) % self._run.trainer.accumulate  # gradients then go on accumulating where the run's do
        return max(1, steps)

    def _judge_arm(self, now: Round, one: Lifecycle) -> None:
        run, split, twin = self._run, self._run.judge.split, now.twin
        assert twin is not None
        now.curve.close(run.step, run.train_flops)
        result = run.measure()
        one.gates["twin"] = against_twin(result, twin, split.gate)
        has_passed = one.state is State.EVALUATING and self._may_adopt(one)
        loss = result.loss(split.select)
        self._log_arm(now, one, twin, select_loss=loss, passed=has_passed, given_up=False, **one.gates["twin"])
        if has_passed and now.halfway is not None:
            now.lead = now.halfway if now.lead is None else min(now.lead, now.halfway)
        if has_passed and (now.best is None or loss < now.best["loss"]):
            now.best = {"lifecycle": one.number, "loss": loss, "body": run.snapshots.body()}

    def _may_adopt(self, one: Lifecycle) -> bool:
        run = self._run
        finite = bool(torch.isfinite(run.places[one.layer_id].arena.slots).all())
        measured = one.gates["twin"] | {"is_finite": finite, "is_joint": False}
        is_sound = not any(flags.read().any() for flags in run.faults().values())
        return is_sound and gate(State.FINE_TUNING, measured, gate_z=run.config.gate_z).passed

    def _end(self, now: Round) -> None:
        """Back to the run as it was at the end of its window, or to the best arm's body under the run's clock."""
        run, best = self._run, now.best
        self.current = run.arm = None
        for one in self._waiting(now):
            if best is None or one.number != best["lifecycle"]:
                run.seeds.move(one, State.CULLED, "lost_round")
        winner = None
        if best is not None:
            winner = run.books.alive.get(best["lifecycle"])
        reason = "no candidate beat the twin" if best is None else "the winner was taken back"
        if best is not None and winner is not None:
            reason = "beat the twin"
            self._adopt(now, winner, best["body"])
        run.journal.write(
            "round_ended",
            step=run.step,
            round=now.number,
            adopted=None if winner is None else winner.describe(),
            reason=reason,
        )

    def _adopt(self, now: Round, winner: Lifecycle, body: dict[str, Any]) -> None:
        run = self._run
        assert now.twin is not None
        self._recovery.remember_before(now.twin, now.live)
        run.take_over(body, seeds_of=(winner.number,))
        winner.state, winner.since_step = State.EVALUATING, run.step
        run.seeds.promote(winner, State.FINE_TUNING, is_joint=False, **winner.gates["twin"])
