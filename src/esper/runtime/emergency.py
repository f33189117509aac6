"""Notices when the run is harmed while grafts are live, and ends it: the graft that is at fault alone, or the harm.

Three signs. Training losses that spike, or are not finite, several times in a row; they are read one step late, so that
no step waits for the device. A host whose parameters are not finite, at boundaries. A held-out loss that rose against
the last good one, by more than a threshold and significantly.

What is done then is a setting, ``emergency_response``; after too many in a row the run stops in any case.

A sign is not yet an emergency. Losses spike for reasons of the data, so a spike counts only if the held-out loss rose
too. Without live grafts spikes are the user's business; a host that is not finite goes back in any case.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from torch import Tensor

from esper.contracts.errors import HarmedError
from esper.contracts.events import EmergencyEnded
from esper.contracts.lifecycle import LIVE, State
from esper.contracts.settings.watch import EmergencyResponse
from esper.runtime.commands.undisturbed import undisturbed
from esper.runtime.judging.judge import Measurement
from esper.runtime.judging.worth import paired_z
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.training.late import Late
from esper.runtime.trying.rounds import Rounds
from esper.runtime.trying.trials import Trials
from esper.runtime.watching.keeping import Keeping
from esper.runtime.watching.recovery import Entry, Recovery

RING = 64
"""Training losses that a new one is compared with."""

ENOUGH = 16
"""Below so many there is nothing to compare with."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""

LEAST_DEVIATION = 0.01
"""Of the median loss: a run whose losses hardly scatter does not spike by hardly more."""

RISE_Z = 3.0
"""By how many standard errors over samples, and by how many usual changes between boundaries, the held-out loss must
have risen. Samples alone do not tell: at a high learning rate the losses of all of them wobble together, and are back
at the next boundary."""

BOUNDARIES = 9
"""Held-out losses from which the usual change is taken."""


class Emergency:
    """Watches over a run.

    Args:
        run: the run.
        rounds: its rounds, abandoned when the run goes back.
        trials: its live trials, likewise.
        keeping: removes a graft that is at fault.
        recovery: goes back.
    """

    def __init__(self, run: Run, rounds: Rounds, trials: Trials, keeping: Keeping, recovery: Recovery) -> None:
        self._run, self._rounds, self._trials = run, rounds, trials
        self._keeping, self._recovery = keeping, recovery
        self._losses: list[float] = []
        self._pending: Late | None = None
        self._spikes = self._not_finite = self._in_a_row = 0
        self._reason_to_stop: str | None = None

    @property
    def is_watching(self) -> bool:
        """A run that cannot grow pays nothing."""
        return self._run.config.max_rounds > 0 or bool(self._run.books.alive)

    def after_step(self, loss: Tensor | float) -> None:
        """Look at the loss of the step before."""
        if not self.is_watching:
            return
        pending, self._pending = self._pending, Late(loss)
        if pending is None:
            return
        value, patience = float(pending.read()), self._run.config.emergency_patience
        if not math.isfinite(value):
            self._not_finite += 1
            if self._not_finite == patience:
                self.suspect(f"{patience} training losses in a row were not finite")
            return
        is_spike = bool(self._run.in_state(*LIVE)) and self._is_spike(value)
        self._spikes, self._not_finite = (self._spikes + 1 if is_spike else 0), 0
        self._losses = [*self._losses, value][-RING:]
        if self._spikes == patience:
            self.suspect(f"{patience} training losses in a row spiked, the last to {value:.4g}")

    def at_boundary(self, now: Measurement) -> bool:
        """Look at the host's parameters and at the held-out loss.

        Returns:
            Whether anything was done, so that ``now`` is out of date.
        """
        run, good = self._run, self._recovery.newest
        if not self.is_watching:
            return False
        if not run.host_is_finite:
            return self._respond("the host's parameters are not finite", now, good)
        if good is None or self._keeping.is_removing or not self._has_risen(now, good):
            return False
        if not run.in_state(*LIVE) and math.isfinite(now.loss(run.judge.split.select)):
            return False
        return self._respond("the held-out loss rose", now, good)

    def all_is_well(self) -> None:
        """Note a boundary at which the run is as it should be."""
        self._in_a_row = 0

    @property
    def must_stop(self) -> bool:
        """Whether the run is not to go on by itself."""
        return self._reason_to_stop is not None

    def stop(self) -> None:
        """End it; once, so that whoever goes on in spite of it may.

        Raises:
            HarmedError: it tells why, and where the run stands.
        """
        reason, self._reason_to_stop = self._reason_to_stop, None
        raise HarmedError(reason)

    def roll_back(self, reason: str, who: str, entry: Entry | None = None) -> None:
        """Go back to a state, the newest valid one unless one is given; what is on trial ends. Ctrl-C waits meanwhile.

        Raises:
            TransitionError: if there is none; nothing was changed then.
        """
        entry = self._recovery.check() if entry is None else entry
        with undisturbed():
            self._rounds.abandon(reason)
            self._trials.abandon(reason, spares_live=True)
            self._recovery.roll_back(entry, reason, who)
            self._keeping.forget()
            self._pending, self._losses, self._spikes, self._not_finite = None, [], 0, 0

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        pending = None if self._pending is None else self._pending.read()
        return {
            "losses": self._losses,
            "pending": pending,
            "spikes": self._spikes,
            "not_finite": self._not_finite,
            "in_a_row": self._in_a_row,
            "lr_factor": self._run.trainer.lr_factor,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._losses, self._spikes, self._not_finite = state["losses"], state["spikes"], state["not_finite"]
        self._pending = None if state["pending"] is None else Late(state["pending"])
        self._in_a_row, self._run.trainer.lr_factor = state["in_a_row"], state["lr_factor"]

    def _is_spike(self, loss: float) -> bool:
        if len(self._losses) < ENOUGH:
            return False
        middle = median(self._losses)
        deviation = MAD_TO_DEVIATION * median(abs(one - middle) for one in self._losses)
        return loss - middle > self._run.config.spike_z * max(deviation, LEAST_DEVIATION * abs(middle))

    def suspect(self, sign: str) -> None:
        """A sign in the training losses: believe it if it shows elsewhere."""
        run = self._run
        if not run.host_is_finite:
            self._respond(f"{sign}, and the host's parameters are not finite", None, self._recovery.newest)
        elif run.in_state(*LIVE):
            now, good = run.evaluations.measure(), self._recovery.newest
            if good is None or self._has_risen(now, good):
                self._respond(sign, now, good)
        self._spikes, self._losses = 0, []

    def _has_risen(self, now: Measurement, good: Entry) -> bool:
        select, before = self._run.judge.split.select, good["select_loss"]
        loss = now.loss(select)
        if not math.isfinite(loss):
            return math.isfinite(before)
        groups = None if now.groups is None else now.groups[select]
        z = paired_z(good["losses"], now.losses[select], groups)
        if not (loss > self._bound(good) and z is not None and z >= RISE_Z):
            return False
        return loss - before > RISE_Z * usual_change(self._run.books.select_losses[-1 - BOUNDARIES : -1])

    def _bound(self, good: Entry) -> float:
        before = float(good["select_loss"])
        return before + self._run.config.emergency_rollback_threshold * abs(before)

    def _respond(self, reason: str, now: Measurement | None, good: Entry | None) -> bool:
        """End the harm as the settings say; whether there was anything to do."""
        run, config = self._run, self._run.config
        must_stop = config.emergency_response == "stop" or self._in_a_row + 1 >= config.max_emergencies
        response: EmergencyResponse = "stop" if must_stop else config.emergency_response
        culprit = self._culprit(now, good) if response == "cull" and now is not None else None
        if response == "cull" and culprit is None:
            response = "rollback"
        entry = self._recovery.best if must_stop else good
        if culprit is None and entry is None and not must_stop:
            return False
        self._in_a_row += 1
        run.journal.write(
            EmergencyEnded(
                step=run.step,
                reason=reason,
                select_loss=None if now is None else now.loss(run.judge.split.select),
                good_select_loss=None if good is None else good["select_loss"],
                response=response,
                lifecycle=None if culprit is None else culprit.number,
                layer_id=None if culprit is None else culprit.layer_id,
            )
        )
        if culprit is not None:
            run.seeds.move(culprit, State.CULLED, f"emergency: {reason}")
            self._keeping.take_out(culprit)
            return True
        if entry is not None:
            self.roll_back(f"emergency: {reason}", "session", entry)
        if response == "lower_lr":
            run.trainer.lr_factor *= config.emergency_lr_factor
        elif must_stop:
            self._stop(reason, entry)
        return True

    def _stop(self, reason: str, entry: Entry | None) -> None:
        times = f"{self._in_a_row} times in a row, the last time at" if self._in_a_row > 1 else "at"
        stands = "no good state was kept that it could go back to"
        if entry is not None:
            stands = (
                f"it stands at the best state that was kept, of step {entry['step']} with a held-out loss of "
                f"{entry['select_loss']:.4g}"
            )
        self._reason_to_stop = (
            f"The run was harmed {times} step {self._run.step}: {reason}. It has stopped; {stands}. Look at the data "
            "and the learning rate; then train on or finish the session, or go by another emergency_response or more "
            "max_emergencies."
        )
        self._in_a_row = 0

    def _culprit(self, now: Measurement, good: Entry | None) -> Lifecycle | None:
        """The one live graft without which the held-out loss is what it was.

        It is taken out at once and not blended out: that the run is well without it has just been measured.
        """
        run, select = self._run, self._run.judge.split.select
        found: list[tuple[float, Lifecycle]] = []
        for one in run.in_state(*LIVE):
            without = run.evaluations.ablated(one)
            loss = without.loss(select)
            if loss <= self._bound(good) if good is not None else self._is_much_better(without, now):
                found.append((loss, one))
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def _is_much_better(self, one: Measurement, other: Measurement) -> bool:
        select = self._run.judge.split.select
        loss, than = one.loss(select), other.loss(select)
        if not math.isfinite(than):
            return math.isfinite(loss)
        z = one.gain_over(other, select).z
        gap = self._run.config.emergency_rollback_threshold * abs(loss)
        return than - loss > gap and z is not None and z >= RISE_Z


def usual_change(losses: Sequence[float]) -> float:
    """Standard deviation of the change between two boundaries beside the trend, robustly; 0 if they are too few.

    From second differences ``x[i] - (x[i - 1] + x[i + 1]) / 2``, whose variance is 3/2 of that of independent noise,
    while that of a change is twice that.
    """
    second = [abs(b - (a + c) / 2) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False)]
    finite = [value for value in second if math.isfinite(value)]
    return MAD_TO_DEVIATION * median(finite) * math.sqrt(4 / 3) if len(finite) >= 3 else 0.0
