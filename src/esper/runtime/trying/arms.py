"""One arm: a candidate grows in a copy of the run, on the window's batches, and is judged against the twin.

Both are judged by the mean of their weights over the last quarter of their steps.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from esper.contracts.events import ArmEnded
from esper.contracts.lifecycle import State
from esper.kasmina.places.variation import Variation
from esper.runtime.judging.gates import GateResult, gate
from esper.runtime.judging.judge import Measurement, against_twin
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.state.snapshot import Kept
from esper.runtime.trying.replay import Round, replay_step

HOPELESS = 0.02
"""Share by which an arm's training loss may lie above the run's at equal steps before it is given up."""

Verdict = Callable[[Run, Lifecycle], GateResult]


@dataclass(frozen=True)
class Outcome:
    """What an arm has come to.

    Attributes:
        loss: its held-out loss on the select and gate samples.
        has_passed: whether it may be adopted.
        is_beaten: whether its loss on the gate samples is no lower than the twin's.
        keep: gives its body, for later.
    """

    loss: float
    has_passed: bool
    is_beaten: bool
    keep: Callable[[], Kept]


class Source:
    """Where an arm has its window from. In the run's own process all of it is there."""

    def await_step(self, now: Round) -> None:
        """Until the next step is there."""

    def await_end(self, now: Round) -> None:
        """Until all steps are there, once the arm has taken its own."""

    def await_twin(self, now: Round) -> Measurement:
        """Until the run was measured at the end of its window."""
        assert now.twin is not None
        return now.twin

    def steps(self, now: Round, first_flops: int, accumulate: int) -> int:
        """As :func:`arm_steps`, as far as anybody can know."""
        return arm_steps(now, first_flops, now.flops, accumulate)


class Arms:
    """Trains and judges arms in the run's own objects.

    Args:
        run: the run.
        after_step: called where an arm can be gone on with, after every step of it.
        source: where the window comes from.

    Attributes:
        verdict: says of a candidate whose arm has ended whether it may be adopted; another judge can be handed in.
    """

    def __init__(self, run: Run, after_step: Callable[[Round], None], source: Source | None = None) -> None:
        self._run, self._after_step, self._source = run, after_step, source or Source()
        self.verdict: Verdict = by_the_grow_gate

    def take(self, now: Round, one: Lifecycle) -> Outcome:
        """Run the arm of a candidate to its end, from wherever ``now`` says that it stands."""
        run = self._run
        run.arm = arm_name(now, one)
        self._train(now, one)
        return self._judge(now, one)

    def _train(self, now: Round, one: Lifecycle) -> None:
        run, config = self._run, self._run.config
        if now.arm_step == 0:
            run.captures.restore(now.start)
            if one.state is State.GERMINATED:
                run.seeds.promote(one, State.TRAINING, has_slot=True)
            run.seeds.promote(one, State.GRAFTING)
        while now.arm_steps is None or now.arm_step < now.arm_steps:
            self._source.await_step(now)
            flops = replay_step(run, now, [one])
            if now.arm_steps is None:  # the first step tells what the others will cost
                now.arm_steps = self._steps(now, flops)
            now.arm_mean.after_step(run.model, now.arm_step, now.arm_steps)
            hold = max(1, int(config.hold_fraction * now.arm_steps))
            if one.state is State.GRAFTING and now.arm_step >= now.arm_steps - hold:
                place = run.places[one.layer_id]
                alpha = place.state.alpha[place.arena.grafts[one.number].seeds[0]]
                run.seeds.promote(one, State.STABILIZATION, alpha=float(alpha))
            self._after_step(now)
            if now.arm_step < now.arm_steps and now.is_at_equal_steps and (now.lag or 0.0) > HOPELESS:
                return
        run.seeds.promote(one, State.EVALUATING, held_steps=run.step - one.since_step)

    def _steps(self, now: Round, first_flops: int) -> int:
        """Steps of an arm whose first one cost ``first_flops``."""
        steps = self._source.steps(now, first_flops, self._run.trainer.accumulate)
        return self._run.ranks.same(steps, "steps of an arm")

    def _judge(self, now: Round, one: Lifecycle) -> Outcome:
        run, split = self._run, self._run.judge.split
        now.curve.close(run.step, run.costs.train_flops)
        self._source.await_end(now)
        with Variation(run.places[one.layer_id], one.number) as variation:
            result = run.evaluations.measure_mean(now.arm_mean, now.batches)
        twin = self._source.await_twin(now)
        measured = against_twin(result, twin, split.gate)
        lead = None if measured["gain"] is None else measured["gain"] / (abs(measured["twin_gate_loss"]) or math.inf)
        equal = {"lead": lead, "is_at_equal_steps": now.is_at_equal_steps}
        one.gates["twin"] = measured | equal | {"variation": run.ranks.same(variation.share, "a variation")}
        verdict = self.verdict(run, one)
        has_passed = one.state is State.EVALUATING and verdict.passed
        is_earlier = now.twin_steps not in (None, len(now.batches))
        told = f"{verdict}, against the run as it was after {now.twin_steps} of its {len(now.batches)} steps"
        judged = {
            "select_loss": result.loss(split.select),
            "passed": has_passed,
            "verdict": self._given_up(now) or (told if is_earlier else str(verdict)),
        }
        self._log(now, one, twin, **judged, **one.gates["twin"])
        gain = one.gates["twin"]["gain"]
        is_beaten = gain is None or not gain > 0
        loss = result.loss(torch.cat([split.select, split.gate]))
        return Outcome(loss, has_passed, is_beaten, run.snapshots.keep)

    def _given_up(self, now: Round) -> str | None:
        if now.arm_steps is None or now.arm_step >= now.arm_steps:
            return None
        told = f"its training loss lay {now.lag:.1%} above the run's"
        return f"given up after {now.arm_step} of {now.arm_steps} steps: {told}"

    def _log(self, now: Round, one: Lifecycle, twin: Measurement, **judged: Any) -> None:
        run = self._run
        run.journal.write(
            ArmEnded(
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
        )


def arm_steps(now: Round, first_flops: int, run_flops: Sequence[int], accumulate: int) -> int:
    """Steps of an arm whose first one cost ``first_flops``; it costs more than the run's by one factor.

    Args:
        now: the round.
        first_flops: of the first step, in the arm.
        run_flops: of all steps of the window, in the run.
        accumulate: batches per optimizer step: gradients go on accumulating after the arm where the run's do.
    """
    window = steps = len(run_flops)
    if not now.is_at_equal_steps:
        spent = (first_flops * flops for flops in itertools.accumulate(run_flops))
        steps = sum(flops <= run_flops[0] * sum(run_flops) for flops in spent)
    steps -= (steps - window) % accumulate
    return max(1, steps)


def by_the_grow_gate(run: Run, one: Lifecycle) -> GateResult:
    """The verdict of the grow gate; a fault anywhere counts as values that are not finite."""
    is_finite = bool(torch.isfinite(run.places[one.layer_id].arena.slots).all())
    is_finite &= not any(flags.read().any() for flags in run.faults().values())
    measured = one.gates["twin"] | {"is_finite": is_finite, "is_joint": False}
    return gate(State.FINE_TUNING, measured, gate_z=run.config.gate_z)


def arm_name(now: Round, one: Lifecycle) -> str:
    """Under which the audit log tells of an arm."""
    return f"round{now.number}/{one.layer_id or 'model'}/{one.blueprint}"
