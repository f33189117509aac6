"""After adoption: keep looks, freezing, blend-outs, recovery. Promotions here happen at boundaries."""

from functools import partial
from typing import Any

import torch

from esper.contracts.commands import Command, SeedIds
from esper.contracts.events import Fault, KeepLook, RecoveryEnded
from esper.contracts.lifecycle import LIVE, OUTCOMES, State
from esper.kasmina.grafts.guard import LIVE_FAULT
from esper.kasmina.places.lifecycle import is_finite
from esper.kasmina.seeds.reading import read_together
from esper.runtime.judging.gates import gate
from esper.runtime.judging.judge import Measurement, without_it
from esper.runtime.judging.worth import confirm_level, one_sided_p
from esper.runtime.record.books import FALLING, Lifecycle
from esper.runtime.run import Run
from esper.runtime.state.batches import copy_of
from esper.runtime.training.late import Late
from esper.runtime.watching.recovery import Entry, Recovery


class Keeping:
    """Decides the fate of grafts that live in the run.

    Args:
        run: the run.
        recovery: the states to fall back to.
    """

    def __init__(self, run: Run, recovery: Recovery) -> None:
        self._run, self._recovery = run, recovery
        self.pending: dict[str, Late] = {}
        self._faulty_fossils: set[str] = set()  # places whose fossils were reported
        self._deadline: int | None = None  # boundary by which the held-out loss must have recovered
        self.settled_loss: float | None = None  # held-out loss at the last boundary at which nothing was being removed

    @property
    def is_removing(self) -> bool:
        """Whether a graft is being blended out, or the run has yet to recover from one that was."""
        return self._deadline is not None or bool(self._run.in_state(*FALLING))

    def after_step(self) -> None:
        """Act on the guard's flags of the step before, and take out what has been blended out."""
        run = self._run
        self._act_on(self.pending)
        self.take_out(*run.blend_outs())
        self.pending = run.faults() if run.costs.structure else {}

    def at_boundary(self, now: Measurement) -> None:
        """Looks, freezing, recovery, and what :meth:`pass_time` does; never while anything is on trial."""
        run = self._run
        if not self.is_removing:
            self.settled_loss = now.loss(run.judge.split.select)
        for one in run.in_state(State.FINE_TUNING):
            due = sum(look <= run.fraction for look in run.config.keep_looks)
            if not one.is_kept and due > one.looks:
                one.looks = due
                self.look(one, now, is_last=due == len(run.config.keep_looks))
        self._check_recovery(now)
        if run.config.freeze == "at_once" or run.trainer.has_decayed:
            self.freeze()
        self.pass_time()

    def pass_time(self) -> None:
        """Timeouts of seeds that wait, and the end of embargoes."""
        run = self._run
        limit = run.config.timeout * run.planned_steps
        late = [one for one in run.in_state(State.GERMINATED) if run.step - one.since_step > limit]
        run.seeds.move_all(late, State.CULLED, "timed_out")
        self._release()

    def finish(self) -> None:
        """Decide every lifecycle that is still open."""
        run = self._run
        self._act_on(self.pending)
        run.seeds.move_all(run.in_state(State.GERMINATED), State.CANCELLED, "the run was finished")
        undecided = [one for one in run.in_state(State.FINE_TUNING) if not one.is_kept]
        if undecided:
            now = run.evaluations.measure()
            for one in undecided:
                self.look(one, now, is_last=True)
        self._finish_blend_outs()
        if self._deadline is not None:
            self._deadline = 0
            self._check_recovery(run.evaluations.measure())
        self.freeze()
        self._release(all_of_them=True)

    def state_dict(self) -> dict[str, Any]:
        """Flags that were not acted on, and the deadline."""
        pending = {layer_id: flags.read() for layer_id, flags in self.pending.items()}
        return {
            "pending": pending,
            "deadline": self._deadline,
            "settled_loss": self.settled_loss,
            "faulty_fossils": sorted(self._faulty_fossils),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.pending = {layer_id: Late(flags) for layer_id, flags in state["pending"].items()}
        self._deadline, self.settled_loss = state["deadline"], state["settled_loss"]
        self._faulty_fossils = set(state["faulty_fossils"])

    def forget(self) -> None:
        """The run went back to before anything that was flagged or removed."""
        self.pending, self._deadline = {}, None

    def look(self, one: Lifecycle, now: Measurement, *, is_last: bool) -> None:
        """Ablation on the gate samples; who passes is confirmed once on samples that nothing else has seen."""
        run, split = self._run, self._run.judge.split
        without = run.evaluations.ablated(one)
        worth = without_it(now, without, split.gate)
        z = worth["ablation_z"]
        finite = is_finite(run.places[one.layer_id], one.number)
        measured: dict[str, Any] = {**worth, "is_finite": finite, "confirm_margin": None}
        if z is not None and z >= run.config.gate_z:
            run.books.judged += 1
            confirm_z = now.gain_over(without, split.confirm).z
            level = confirm_level(run.books.judged)
            p_value = None if confirm_z is None else one_sided_p(confirm_z)
            margin = None if p_value is None else level - p_value
            measured |= {"confirm_z": confirm_z, "confirm_level": level, "confirm_p": p_value, "confirm_margin": margin}
            is_last = True
        one.gates["keep"] = measured
        one.is_kept = gate(State.FOSSILIZED, measured, gate_z=run.config.gate_z).passed
        run.journal.write(
            KeepLook(
                step=run.step,
                lifecycle=one.number,
                layer_id=one.layer_id,
                look=one.looks,
                passed=one.is_kept,
                **measured,
            )
        )
        if not one.is_kept and is_last:
            run.seeds.move(one, State.CULLED, "keep gate refused")

    def freeze(self) -> None:
        """Make fossils of what was kept.

        A fossil is for good, and no run goes back to before it. So this waits until every live graft is decided, and
        until the run has recovered from those that were removed.
        """
        run, tuning = self._run, self._run.in_state(State.FINE_TUNING)
        if self.is_removing or not all(one.is_kept for one in tuning):
            return
        measured = {
            one.number: {name: value for name, value in one.gates["keep"].items() if name != "is_finite"}
            for one in tuning
        }
        answers = run.seeds.promote_all(tuning, State.FOSSILIZED, measured)
        for one, answer in zip(tuning, answers, strict=True):
            if answer.accepted:
                self._recovery.forget()
            else:
                run.seeds.move(one, State.CULLED, answer.reason)
                self.take_out(one)  # only non-finite parameters can shut the gate now: it is the identity already

    def _act_on(self, pending: dict[str, Late]) -> None:
        """End the grafts that were flagged. One that waits for its round has run in arms only and is not meant."""
        run = self._run
        for layer_id, late in pending.items():
            flags = late.read()
            if not flags.any():
                continue
            place = run.places[layer_id]
            numbers = place.state.lifecycle_id.cpu()[(flags & LIVE_FAULT) > 0].unique().tolist()
            place.state.fault[(flags > 0).to(place.state.fault.device)] = 0
            if numbers or layer_id not in self._faulty_fossils:  # a fossil's fault comes back in every step
                run.journal.write(Fault(step=run.step, layer_id=layer_id, lifecycles=numbers))
            if not numbers:
                self._faulty_fossils.add(layer_id)
            meant = [one for one in run.in_state(*LIVE, *FALLING) if one.number in numbers]
            run.seeds.move_all([one for one in meant if one.state in LIVE], State.CULLED, "non-finite values")
            self.take_out(*meant)  # they are the identity already: there is nothing to blend out

    def take_out(self, *lifecycles: Lifecycle) -> None:
        """Remove grafts that are blended out, or must not stay any longer; the run then has to recover."""
        if not lifecycles:
            return
        self._run.seeds.discard(*lifecycles)
        self._deadline = len(self._run.books.select_losses) + self._run.config.patience_after_cull

    def _finish_blend_outs(self) -> None:
        """The data has ended: blend out on the last batches; without any, take the grafts out as they are."""
        run = self._run
        for batch in list(run.recent) * -(-run.ramp_steps // max(1, len(run.recent))):
            if not run.in_state(*FALLING):
                return
            loss, flops = run.costs.step(copy_of(batch), partial(run.trainer.train, replayed=(None,)))
            run.books.run_flops += flops
            run.trainer.step += 1
            run.advance(loss)
            self.take_out(*run.blend_outs())
        self.take_out(*run.in_state(*FALLING))

    def _check_recovery(self, now: Measurement) -> None:
        """A run that removed a graft must come back to the held-out loss it had before it, or goes back there.

        Held-out loss can have risen since for another reason: the host overfits, and its accuracy still rises. So where
        the accuracy is at least what it was before the graft, the loss is asked to be what it was before the removal.

        The fallback is the newest one in which no graft is live that is not so any more; thus it is from before the
        graft that was removed.
        """
        run, recovery = self._run, self._recovery
        if self._deadline is None:
            return
        live = {one.number for one in run.in_state(*LIVE)}
        valid = [fallback for fallback in recovery.fallbacks if live.issuperset(fallback["live"])]
        if not valid:
            self._deadline = None
            return
        fallback = valid[-1]
        select = run.judge.split.select
        loss, metric, before = now.loss(select), now.metric(select), fallback["select_metric"]
        least_loss = fallback["select_loss"]
        is_as_accurate = metric is not None and before is not None and metric >= before
        if is_as_accurate and self.settled_loss is not None:
            least_loss = max(least_loss, self.settled_loss)
        has_recovered = loss <= least_loss * (1 + run.config.emergency_rollback_threshold)
        if not has_recovered and len(run.books.select_losses) < self._deadline:
            return
        self._deadline = None
        if has_recovered:
            newest = {tuple(one["live"]): one for one in valid}  # one is enough for the same grafts
            recovery.fallbacks = list(newest.values()) if live else []
        else:
            recovery.fallbacks = valid[:-1]
            self._fall_back(fallback)
        run.journal.write(
            RecoveryEnded(
                step=run.step,
                recovered=has_recovered,
                select_loss=loss,
                select_loss_before_graft=fallback["select_loss"],
            )
        )

    def _fall_back(self, fallback: Entry) -> None:
        """Restore the bytes from before a graft, without those adopted since; states of seeds are not rolled back."""
        run = self._run
        later = [one for one in run.in_state(*LIVE) if one.number not in fallback["live"]]
        run.seeds.move_all(later, State.ROLLED_BACK, "the run went back to before this graft")
        run.seeds.discard(*later)
        run.captures.take_over(fallback["body"], has_gradients=False)

    def _release(self, *, all_of_them: bool = False) -> None:
        """Outcomes lead back to DORMANT: at once, or after the embargo."""
        run = self._run
        columns = []
        for place in run.places.values():
            place.state.epochs_in_state += 1
            state = place.state
            columns.append([state.lifecycle, state.epochs_in_state, state.embargo_epochs, state.lifecycle_id])
        for place, read in zip(run.places.values(), read_together(columns), strict=True):
            lifecycle, epochs, embargo_epochs, lifecycle_id = (column.int() for column in read)
            is_over = (lifecycle == State.FOSSILIZED) | (lifecycle == State.CANCELLED)
            is_failed = (lifecycle == State.CULLED) | (lifecycle == State.ROLLED_BACK)
            is_over |= is_failed & (epochs > embargo_epochs)
            if all_of_them:
                is_over = torch.isin(lifecycle, torch.tensor([int(s) for s in OUTCOMES]))
            is_over &= ~torch.isin(lifecycle_id, torch.tensor([*run.books.alive, -1]))
            if seeds := torch.nonzero(is_over).flatten().tolist():
                seed_ids: SeedIds = "all" if len(lifecycle_id.unique()) == 1 else tuple(seeds)
                run.seeds.carry_out(Command(place.layer_id, seed_ids, State.DORMANT, "outcome is over", who="session"))
