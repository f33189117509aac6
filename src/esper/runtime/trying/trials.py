"""A live trial: grafts grow in the run itself, under the caller's loop, and the twin is trained afterwards.

All grafts on trial pass TRAINING, GRAFTING and STABILIZATION together, at boundaries. The run is captured when GRAFTING
begins; from then on its batches and learning rates are remembered. Once the grafts are frozen and held, the twin
starts from the capture without them, on the same batches, in an arm. If the grafts do not beat it, the run becomes the
twin and has lost only the arm's FLOPs. With ``judge="ablation"`` nothing is captured or remembered; a graft then stays
if the run is worse without it, which a host that has come to lean on it makes easy.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from esper.contracts.events import TrialBegun, TrialEnded
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.places.variation import Variation
from esper.runtime.judging.gates import Measured, gate
from esper.runtime.judging.judge import Measurement, against_twin, without_it
from esper.runtime.record.books import FALLING, Lifecycle, numbers
from esper.runtime.run import Run
from esper.runtime.state.batch_store import BatchStore, ReplayError
from esper.runtime.state.snapshot import Kept
from esper.runtime.trying.replay import OTHER_GROUPS, Curve, Window, replay_step
from esper.runtime.trying.steps import Step
from esper.runtime.watching.recovery import Recovery

ON_TRIAL = (State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING)


@dataclass(kw_only=True)
class LiveTrial:
    """A live trial under way; everything in it is stored with a checkpoint.

    Attributes:
        number: counts the live trials of a run from 1.
        members: numbers of the lifecycles on trial.
        window: the run since GRAFTING began; None before, and where no twin will be trained.
        grown: the run's evaluation with the grafts, once it is to be judged.
        variation: share of what each of them added there that depended on its input, by lifecycle.
    """

    number: int
    members: list[int]
    window: Window | None = None
    grown: Measurement | None = None
    variation: dict[int, float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The trial as a nested state."""
        return {
            **vars(self),
            "window": None if self.window is None else self.window.to_dict(),
            "grown": None if self.grown is None else self.grown.to_dict(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], batches: BatchStore) -> "LiveTrial":
        """Inverse of :meth:`to_dict`; ``batches`` is an empty store, which takes the saved ones."""
        window = None if saved["window"] is None else Window.from_dict(saved["window"], batches)
        grown = None if saved["grown"] is None else Measurement(**saved["grown"])
        return cls(**{**saved, "window": window, "grown": grown})


class Trials:
    """Runs the live trials of a run, one at a time.

    Args:
        run: the run.
        recovery: keeps the run as it was before each trial.
        checkpoint: called every ``checkpoint_steps`` within the twin's arm, where it can be resumed.
        checkpoint_steps: None checkpoints at boundaries only.
    """

    def __init__(
        self, run: Run, recovery: Recovery, checkpoint: Callable[[], None], checkpoint_steps: int | None
    ) -> None:
        self._run, self._recovery = run, recovery
        self._checkpoint, self._checkpoint_steps = checkpoint, checkpoint_steps
        self.current: LiveTrial | None = None

    @property
    def is_due(self) -> bool:
        """Whether the trial is to be judged, or its judgement to be gone on with."""
        return self.current is not None and self.current.grown is not None

    def begin(self, candidates: list[Lifecycle], now: Measurement) -> None:
        """Put waiting grafts on trial together; with the objective ``"none"`` they are blended in at once."""
        run = self._run
        run.books.trials_begun += 1
        self.current = LiveTrial(number=run.books.trials_begun, members=numbers(candidates))
        run.journal.write(
            TrialBegun(
                step=run.step,
                trial=self.current.number,
                candidates=[one.describe() for one in candidates],
            )
        )
        run.seeds.promote_all(candidates, State.TRAINING, {one.number: {"has_slot": True} for one in candidates})
        for one in candidates:
            run.begin_incubation(one)
        if run.config.objective == "none":
            self._blend_in(self.current, now)

    def after_step(self, step: Step) -> None:
        """One step of the run under trial."""
        trial = self.current
        assert trial is not None
        if not self._members(trial):
            self._close(trial, "no graft is left on trial")
        elif trial.window is not None:
            trial.window.remember(step)
            self._abandon_if_void(trial)

    def at_boundary(self, now: Measurement) -> None:
        """Promotions of all grafts on trial together, and timeouts."""
        run, trial = self._run, self.current
        assert trial is not None
        members = self._members(trial)
        if not members or self._abandon_if_void(trial):
            return
        config, held = run.config, run.step - max(one.since_step for one in members)
        window_steps = max(1, round(config.round_fraction * run.planned_steps))
        state = members[0].state
        if state is State.TRAINING and held >= round(config.incubation_fraction * run.planned_steps):
            if not run.in_state(*FALLING):  # the capture would hold them
                self._blend_in(trial, now)
        elif state is State.GRAFTING and held >= window_steps and not self._rising(members):
            self._promote(members, State.STABILIZATION, {one.number: {"alpha": self._alpha(one)} for one in members})
        elif state is State.STABILIZATION and held >= max(1, int(config.hold_fraction * window_steps)):
            self._evaluate(trial, members, held)
        self._time_out(self._members(trial))

    def judge(self) -> None:
        """Train the twin and compare, or ablate. Goes on where it was cut.

        An error in the arm ends the trial and is raised; the caller's model is the run then, as after an interruption.
        """
        trial = self.current
        assert trial is not None
        if trial.window is None:
            self._judge_by_ablation(trial)
            return
        if trial.window.has_other_groups(self._run.trainer.num_groups):  # given after its arm was interrupted
            self.abandon(OTHER_GROUPS)
            return
        try:
            twin, body, curve = self._train_twin(trial, trial.window)
        except ReplayError as error:
            self.abandon(str(error))
            return
        except Exception as error:  # passed on; an interruption leaves the trial standing, to be resumed
            self._run.arm = None
            self.abandon(f"the arm of the twin failed: {error!r}")
            raise
        self._run.arm = None
        self._judge_by_twin(trial, twin, body, curve)

    def abandon(self, reason: str, *, spares_live: bool = False) -> None:
        """End the trial without a verdict; its grafts are cancelled.

        Args:
            reason: why.
            spares_live: leave those that are live to the caller.
        """
        trial = self.current
        if trial is None:
            return
        self._run.arm = None
        self._close(trial, reason)
        ends = [one for one in self._members(trial) if one.state is State.TRAINING or not spares_live]
        self._run.seeds.move_all(ends, State.CANCELLED, reason)

    def finish(self) -> None:
        """The run ends: judge what can be judged, else give up."""
        run, trial = self._run, self.current
        if trial is None:
            return
        members = self._members(trial)
        if not self.is_due and members and all(one.state is State.STABILIZATION for one in members):
            held = run.step - max(one.since_step for one in members)
            if held >= 1 and not run.in_state(*FALLING):
                self._evaluate(trial, members, held)
        if self.is_due:
            self.judge()
        else:
            self.abandon("the run was finished")

    def _abandon_if_void(self, trial: LiveTrial) -> bool:
        if trial.window is None:
            return False
        if self._others(trial) != trial.window.live:
            self.abandon("another graft was removed during the trial")
        elif trial.window.has_other_groups(self._run.trainer.num_groups):
            self.abandon(OTHER_GROUPS)
        return self.current is None

    def _blend_in(self, trial: LiveTrial, now: Measurement) -> None:
        run, members = self._run, self._members(trial)
        for one in members:
            run.end_incubation(one)
        if run.config.judge == "twin":
            trial.window = Window(
                start=run.captures.keep(), live=numbers(run.in_state(*LIVE)), batches=run.batch_store()
            )
            self._recovery.remember_before(now, trial.window.live, trial.window.start["body"], trial.number)
        self._promote(members, State.GRAFTING, {})

    def _evaluate(self, trial: LiveTrial, members: list[Lifecycle], held: int) -> None:
        run = self._run
        if run.in_state(*FALLING):  # what is blended out is no part of what would stay
            return
        self._promote(members, State.EVALUATING, {one.number: {"held_steps": held} for one in members})
        with ExitStack() as watching:
            seen = {
                one.number: watching.enter_context(Variation(run.places[one.layer_id], one.number))
                for one in self._members(trial)
            }
            if seen:
                trial.grown = run.evaluations.measure()
        shares = {number: variation.share for number, variation in seen.items()}
        trial.variation = run.ranks.same(shares, "variations")

    def _promote(self, members: list[Lifecycle], target: State, measured: Mapping[int, Measured]) -> None:
        answers = self._run.seeds.promote_all(members, target, measured)
        for one, answer in zip(members, answers, strict=True):
            if not answer.accepted:
                self._run.seeds.move(one, State.CULLED, answer.reason)

    def _time_out(self, members: list[Lifecycle]) -> None:
        """Where some grafts are still rising, those that are not only wait for them and are not to blame."""
        run = self._run
        limit = run.config.timeout * run.planned_steps
        late = [one for one in self._rising(members) or members if run.step - one.since_step > limit]
        run.seeds.move_all(late, State.CULLED, "timed_out")

    def _train_twin(self, trial: LiveTrial, window: Window) -> tuple[Measurement, Kept, Curve]:
        """Evaluation, body and learning curve of the run as it would be without its grafts."""
        run, members = self._run, self._members(trial)
        window.end(run)
        run.arm = f"trial{trial.number}/twin"
        try:
            if window.arm_step == 0:
                run.captures.restore(window.start)
            for one in members:
                one.state = State.TRAINING
            while window.arm_step < len(window.batches):
                replay_step(run, window, members)
                run.inbox.safe_point()
                every, done = self._checkpoint_steps, window.arm_step
                if every and done % every == 0 and done < len(window.batches):
                    self._checkpoint()
            window.curve.close(run.step, run.costs.train_flops)
            return run.evaluations.measure(), run.snapshots.keep(), window.curve
        finally:
            window.restore_run(run)
            for one in members:
                one.state = State.EVALUATING
            window.rewind()

    def _judge_by_twin(self, trial: LiveTrial, twin: Measurement, body: Kept, curve: Curve) -> None:
        run, members, grown = self._run, self._members(trial), trial.grown
        assert grown is not None
        assert trial.window is not None
        part, select = run.judge.split.gate, run.judge.split.select
        measured = against_twin(grown, twin, part)
        most = max((share for share in trial.variation.values() if share is not None), default=None)
        measured_so = {"is_at_equal_steps": False}
        together = measured | measured_so | {"is_finite": True, "is_joint": False, "variation": most}
        verdict = gate(State.FINE_TUNING, together, gate_z=run.config.gate_z)
        is_joint = len(members) > 1
        for one in members:
            worth = without_it(grown, run.evaluations.ablated(one), part) if is_joint and verdict.passed else {}
            one.gates["twin"] = measured | measured_so | worth | {"variation": trial.variation[one.number]}
        if verdict.passed:
            self._recovery.remember_before(twin, trial.window.live, body, trial.number)
            joint = {one.number: {"is_joint": is_joint, **one.gates["twin"]} for one in members}
            self._promote(members, State.FINE_TUNING, joint)
        else:
            run.seeds.move_all(members, State.CULLED, "lost to its twin")
            run.seeds.discard(*members)
            self._recovery.forget_trial(trial.number)
            run.captures.take_over(body)
            if self._recovery.is_well(twin):
                self._recovery.remember_good(twin)
        self._close(
            trial,
            "beat the twin" if verdict.passed else str(verdict),
            passed=verdict.passed,
            steps=len(trial.window.batches),
            select_loss=grown.loss(select),
            twin_select_loss=twin.loss(select),
            **measured,
            curve=curve.points(),
        )

    def _judge_by_ablation(self, trial: LiveTrial) -> None:
        run, members, grown = self._run, self._members(trial), trial.grown
        assert grown is not None
        for one in members:
            worth = without_it(grown, run.evaluations.ablated(one), run.judge.split.gate)
            one.gates["twin"] = worth | {"variation": trial.variation[one.number]}
        self._promote(members, State.FINE_TUNING, {one.number: one.gates["twin"] for one in members})
        passed = any(one.state is State.FINE_TUNING for one in members)
        self._close(
            trial,
            "the run is worse without it" if passed else "the run is no worse without it",
            passed=passed,
            select_loss=grown.loss(run.judge.split.select),
        )

    def _close(self, trial: LiveTrial, reason: str, **fields: Any) -> None:
        run = self._run
        self.current = None
        adopted = self._adopted(trial)
        run.journal.write(
            TrialEnded(
                step=run.step,
                trial=trial.number,
                adopted=[one.describe() for one in adopted],
                reason=reason,
                **fields,
            )
        )

    def _adopted(self, trial: LiveTrial) -> list[Lifecycle]:
        mine = {*trial.members}
        return [one for one in self._run.in_state(State.FINE_TUNING) if one.number in mine]

    def _members(self, trial: LiveTrial) -> list[Lifecycle]:
        """Lifecycles that are still on trial."""
        mine = {*trial.members}
        return [one for one in self._run.in_state(*ON_TRIAL) if one.number in mine]

    def _others(self, trial: LiveTrial) -> list[int]:
        mine = {*trial.members}
        return numbers([one for one in self._run.in_state(*LIVE) if one.number not in mine])

    def _rising(self, members: list[Lifecycle]) -> list[Lifecycle]:
        return [one for one in members if one.state is State.GRAFTING and self._alpha(one) < 1]

    def _alpha(self, one: Lifecycle) -> float:
        place = self._run.places[one.layer_id]
        graft = place.arena.grafts[one.number]
        return float(place.state.alpha[graft.seeds[0]])
