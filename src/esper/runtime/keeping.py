"""After adoption: keep looks, freezing, blend-outs, recovery. Promotions here happen at boundaries."""

from typing import Any

import torch
from torch import Tensor

from esper.contracts.commands import Command, SeedId
from esper.contracts.lifecycle import OUTCOMES, State
from esper.kasmina.gates import gate
from esper.kasmina.guard import LIVE_FAULT
from esper.kasmina.worth import confirm_level, one_sided_p
from esper.runtime.books import Lifecycle
from esper.runtime.judging import Measurement
from esper.runtime.rounds import Rounds
from esper.runtime.run import Run


class Keeping:
    """Decides the fate of grafts that live in the run.

    Args:
        run: the run.
        rounds: its rounds, for the state to fall back to.
    """

    def __init__(self, run: Run, rounds: Rounds) -> None:
        self._run, self._rounds = run, rounds
        self._pending: dict[str, Tensor] = {}
        self._deadline: int | None = None  # boundary by which the held-out loss must have recovered

    def after_step(self) -> None:
        """Act on the guard's flags of the step before, and take out what has been blended out."""
        run = self._run
        flagged = [layer_id for layer_id, flags in self._pending.items() if flags.any()]
        if flagged:
            self._rounds.abandon("a graft failed during the round")
        for layer_id in flagged:
            self._end_faulty(layer_id, self._pending[layer_id])
        for one in list(run.blend_outs()):
            self._take_out(one)
        self._pending = run.faults() if run.structure else {}

    def at_boundary(self, now: Measurement) -> None:
        """Looks, freezing, timeouts, recovery and the end of embargoes; never while a round is under way."""
        run = self._run
        for one in run.in_state(State.FINE_TUNING):
            due = sum(look <= run.fraction for look in run.config.keep_looks)
            if not one.is_kept and due > one.looks:
                one.looks = due
                self._look(one, now, is_last=due == len(run.config.keep_looks))
            self._freeze_if_due(one)
        limit = run.config.timeout * run.planned_steps
        for one in run.in_state(
            State.GERMINATED, State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING
        ):
            if run.step - one.since_step > limit:
                run.move(one, State.CULLED, "timed_out")
        self._check_recovery(now)
        self._release()

    def finish(self, now: Measurement) -> None:
        """Decide every lifecycle that is still open."""
        run = self._run
        for one in run.in_state(State.GERMINATED, State.TRAINING):
            run.move(one, State.CANCELLED, "the run was finished")
        for one in run.in_state(State.FINE_TUNING):
            if not one.is_kept:
                self._look(one, now, is_last=True)
            if one.is_kept:
                self._freeze(one)
        self._finish_blend_outs()
        if self._deadline is not None:
            self._deadline = 0
            self._check_recovery(run.measure())
        self._release(all_of_them=True)

    def state_dict(self) -> dict[str, Any]:
        """Flags that were not acted on, and the deadline."""
        return {"pending": self._pending, "deadline": self._deadline}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._pending, self._deadline = state["pending"], state["deadline"]

    def _look(self, one: Lifecycle, now: Measurement, *, is_last: bool) -> None:
        """Ablation on the gate samples; who passes is confirmed once on samples that nothing else has seen."""
        run, split = self._run, self._run.judge.split
        without = run.ablated(one)
        z = now.z_against(without, split.gate)
        measured: dict[str, Any] = {"ablation_z": z, "is_finite": True, "confirm_margin": None}
        if z is not None and z >= run.config.gate_z:
            run.books.judged += 1
            confirm_z = now.z_against(without, split.confirm)
            level = confirm_level(run.books.judged)
            p_value = None if confirm_z is None else one_sided_p(confirm_z)
            margin = None if p_value is None else level - p_value
            measured |= {"confirm_z": confirm_z, "confirm_level": level, "confirm_p": p_value, "confirm_margin": margin}
            is_last = True
        one.gates["keep"] = measured
        one.is_kept = gate(State.FOSSILIZED, measured, gate_z=run.config.gate_z).passed
        run.journal.write(
            "keep_look",
            step=run.step,
            lifecycle=one.number,
            layer_id=one.layer_id,
            look=one.looks,
            passed=one.is_kept,
            **measured,
        )
        if not one.is_kept and is_last:
            run.move(one, State.CULLED, "keep gate refused")

    def _freeze_if_due(self, one: Lifecycle) -> None:
        is_due = self._run.config.freeze == "at_once" or self._run.trainer.has_decayed
        if one.is_kept and is_due and one.state is State.FINE_TUNING:
            self._freeze(one)

    def _freeze(self, one: Lifecycle) -> None:
        run = self._run
        answer = run.promote(one, State.FOSSILIZED, **{k: v for k, v in one.gates["keep"].items() if k != "is_finite"})
        if answer.accepted:
            self._rounds.fallback = None
        else:
            run.move(one, State.CULLED, answer.reason)

    def _end_faulty(self, layer_id: str, flags: Tensor) -> None:
        run, place = self._run, self._run.places[layer_id]
        place.state.fault.zero_()
        numbers = place.state.lifecycle_id.cpu()[(flags & LIVE_FAULT) > 0].unique().tolist()
        run.journal.write("fault", step=run.step, layer_id=layer_id, lifecycles=numbers)
        for number in numbers:
            one = run.books.alive.get(number)
            if one is None:
                continue
            if one.state not in OUTCOMES:
                run.move(one, State.CULLED, "non-finite values")
            self._take_out(one)  # it is the identity already: there is nothing to blend out

    def _take_out(self, one: Lifecycle) -> None:
        self._run.discard(one)
        self._deadline = len(self._run.books.select_losses) + self._run.config.patience_after_cull

    def _finish_blend_outs(self) -> None:
        """The data has ended: blend out on the last batches; without any, take the grafts out as they are."""
        run = self._run
        for batch in run.recent * -(-run.ramp_steps // max(1, len(run.recent))):
            if not run.in_state(State.CULLED, State.CANCELLED):
                return
            _, flops = run.trainer.train(batch, run.structure, replayed=(None,))
            run.books.run_flops += flops
            run.trainer.step += 1
            run.advance()
            for one in list(run.blend_outs()):
                self._take_out(one)
        for one in run.in_state(State.CULLED, State.CANCELLED):
            self._take_out(one)

    def _check_recovery(self, now: Measurement) -> None:
        """A run that removed a graft must come back to the held-out loss it had before it, or goes back there."""
        run, fallback = self._run, self._rounds.fallback
        if self._deadline is None:
            return
        if fallback is None:
            self._deadline = None
            return
        loss = now.loss(run.judge.split.select)
        has_recovered = loss <= fallback["select_loss"] * (1 + run.config.rollback_threshold)
        if not has_recovered and len(run.books.select_losses) < self._deadline:
            return
        self._deadline = self._rounds.fallback = None
        if not has_recovered:
            self._fall_back(fallback)
        run.journal.write(
            "recovery",
            step=run.step,
            recovered=has_recovered,
            select_loss=loss,
            select_loss_before_graft=fallback["select_loss"],
        )

    def _fall_back(self, fallback: dict[str, Any]) -> None:
        """Restore the bytes from before the graft; states and versions of seeds are not rolled back."""
        run = self._run
        states = {layer_id: place.state.state_dict() for layer_id, place in run.places.items()}
        states = {layer_id: {k: v.clone() for k, v in columns.items()} for layer_id, columns in states.items()}
        rates = run.snapshots.body()["optimizer"]["param_groups"]
        body = fallback["body"]
        run.snapshots.restore_body(body | {"optimizer": body["optimizer"] | {"param_groups": rates}})
        for layer_id, place in run.places.items():
            place.arena.grafts.pop(fallback["lifecycle"], None)
            with torch.no_grad():
                place.state.load_state_dict(states[layer_id])
        run.restored()

    def _release(self, *, all_of_them: bool = False) -> None:
        """Outcomes lead back to DORMANT: at once, or after the embargo."""
        run = self._run
        for place in run.places.values():
            state = place.state
            state.epochs_in_state += 1
            is_over = (state.lifecycle == State.FOSSILIZED) | (state.lifecycle == State.CANCELLED)
            is_over |= (state.lifecycle == State.CULLED) & (state.epochs_in_state > state.embargo_epochs)
            if all_of_them:
                is_over = torch.isin(state.lifecycle, torch.tensor([int(s) for s in OUTCOMES], device=is_over.device))
            busy = torch.tensor([*run.books.alive, -1], device=is_over.device)
            is_over &= ~torch.isin(state.lifecycle_id, busy)
            for number in state.lifecycle_id[is_over].unique().tolist():
                seeds = torch.nonzero(state.lifecycle_id == number).flatten().tolist()
                seed_id: SeedId = "all" if len(seeds) == state.num_seeds else seeds[0]
                run.submit(Command(place.layer_id, seed_id, State.DORMANT, "outcome is over", who="session"))
