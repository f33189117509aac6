"""The run that all of growth shares: its objects, its seeds, its books."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from esper.checkpoint.tree import clone
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.arena import Group
from esper.kasmina.grafting import advance, needs_signals
from esper.kasmina.hosts import is_espers, places
from esper.kasmina.lifecycle import seed_range
from esper.kasmina.place import Place
from esper.runtime.books import FALLING, Books, Lifecycle
from esper.runtime.flops import FlopMeter, count, shapes_of
from esper.runtime.inbox import Inbox
from esper.runtime.journal import Journal
from esper.runtime.judging import Judge, Measurement
from esper.runtime.late import Late
from esper.runtime.random_state import preserved_random_state
from esper.runtime.seeds import Seeds
from esper.runtime.snapshot import Kept, Snapshots
from esper.runtime.tracing import Tracing
from esper.runtime.training import Trainer
from esper.runtime.weight_mean import POINTS, WeightMean, batch_norms, renewing, unchanged


class Run:
    """What is trained, by whom, and how far it has come.

    Args:
        model: the wrapped model.
        config: its configuration.
        trainer: does training steps.
        judge: evaluates.
        snapshots: captures and restores.
        journal: records.
        planned_steps: batches of the run.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GrowthConfig,
        trainer: Trainer,
        judge: Judge,
        snapshots: Snapshots,
        journal: Journal,
        planned_steps: int,
    ) -> None:
        self.model, self.config, self.planned_steps = model, config, planned_steps
        self.trainer, self.judge, self.snapshots, self.journal = trainer, judge, snapshots, journal
        self.places: dict[str, Place] = {place.layer_id: place for place in places(model)}
        self.books = Books()
        self.tracing = Tracing(model, journal)
        self.seeds = Seeds(self)
        self.arm: str | None = None
        self.is_finished = False
        self.epoch = 0
        self.ramp_steps = max(1, round(config.ramp_fraction * planned_steps))
        self.recent: list[Any] = []  # last batches, for a blend-out after the data has ended
        self.inbox = Inbox(journal.deliver)
        self._meter = FlopMeter()
        self._structure: tuple[object, ...] | None = None

    @property
    def step(self) -> int:
        """Batches done; in an arm, the step of the run that it replays."""
        return self.trainer.step

    @property
    def fraction(self) -> float:
        """Share of the planned steps that is done."""
        return self.step / self.planned_steps

    @property
    def train_flops(self) -> int:
        """All FLOPs that made the model what it is: the run's, every arm's, and the judging."""
        return self.books.run_flops + self.books.arm_flops + self.books.judging_flops

    @property
    def structure(self) -> tuple[object, ...]:
        """What a step costs depends on this alone, besides the batch."""
        if self._structure is None:
            self._structure = tuple(
                (layer_id, group.blueprint, len(group.grafts), group.is_live, group.grafts[0].ports)
                for layer_id, place in self.places.items()
                for group in place.arena.groups
                if isinstance(group, Group)
            )
        return self._structure

    def in_state(self, *states: State) -> list[Lifecycle]:
        """Lifecycles under way that are in one of the states."""
        return [one for one in self.books.alive.values() if one.state in states]

    def advance(self, loss: Any) -> None:
        """Clocks and alphas of all places with live grafts, after a training step that had this loss."""
        for layer_id in sorted({one.layer_id for one in self.books.alive.values() if one.state not in _WAITING}):
            place = self.places[layer_id]
            advance(place, self.trainer.signals.read(place, loss) if needs_signals(place) else None)

    def incubate(self) -> None:
        """One step of every graft that trains in isolation; booked."""
        for one in self.in_state(State.TRAINING):
            self.charge(count(partial(self.places[one.layer_id].incubation.learn, one.number)), [one])

    def begin_incubation(self, one: Lifecycle) -> None:
        """Let a graft in TRAINING train in isolation from the next step on, if the objective is any."""
        place = self.places[one.layer_id]
        graft = place.arena.grafts[one.number]
        lr = self.trainer.graft_lr() * (graft.blueprint.rate if self.config.graft_lr is None else 1.0)
        place.incubation.begin(graft, self.config.objective, place.seed, lr)

    def end_incubation(self, one: Lifecycle) -> None:
        """Choose the bytes that the graft will be planted with; what that was worth goes into its record."""
        measured: dict[str, Any] = {}

        def end() -> None:
            measured.update(self.places[one.layer_id].incubation.end(one.number))

        self.charge(count(end), [one])
        if measured:
            one.gates["incubation"] = measured

    def charge(self, flops: int, payers: list[Lifecycle]) -> None:
        """Book FLOPs of an arm, or of training in isolation, on the lifecycles that they were spent for."""
        self.books.arm_flops += flops
        for index, one in enumerate(payers):
            one.flops += flops // len(payers) + (index < flops % len(payers))

    def blend_outs(self) -> Iterator[Lifecycle]:
        """Culled and cancelled lifecycles whose grafts have been blended out by now."""
        for one in self.in_state(*FALLING):
            if self.step - one.since_step >= self.ramp_steps:
                yield one

    def faults(self) -> dict[str, Late]:
        """A copy of the guard's flags of every place with grafts."""
        live = {one.layer_id for one in self.books.alive.values() if one.state in LIVE}
        grown = {layer_id for layer_id, place in self.places.items() if place.is_growing}
        return {layer_id: Late(self.places[layer_id].state.fault) for layer_id in sorted(live | grown)}

    def cost(self, batch: Any) -> int:
        """FLOPs of a training step on a batch.

        One of a kind that was never counted is made once, and undone.
        """

        def step_and_undo() -> None:
            here = self.capture()
            with self.tracing.of_a_step(), self.trainer.signals.unmoved():
                try:
                    self.trainer.train(batch, replayed=(None,))
                finally:
                    self.restore(here, is_spare=True)
                    self.trainer.take_settings()

        return self._meter.cost((shapes_of(batch), self.structure), step_and_undo)

    def measure(self) -> Measurement:
        """Evaluate for a judgement; booked."""
        self.books.judging_flops += self._meter.cost(("evaluate", self.structure), self._trace_evaluation)
        return self.judge.measure()

    def measure_mean(self, mean: WeightMean, batches: Sequence[Any]) -> Measurement:
        """Evaluate by the mean of the weights; booked.

        Batch norms take statistics anew from the last of ``batches``. In a loop of the caller's own nobody can make
        them do so; then models with such norms are judged as they are.
        """
        norms = batch_norms(self.model)
        if not norms:
            with mean.in_place_of(self.model):
                return self.measure()
        if not self.trainer.owns_loop or not mean.count:
            return self.measure()
        shown = batches[-POINTS:]
        with mean.in_place_of(self.model), unchanged(norms), preserved_random_state():
            with renewing(self.model, []):  # what was never counted is done once more for that, and must not count
                for batch in shown:
                    kind = "forward", shapes_of(batch), self.structure
                    self.books.judging_flops += self._meter.cost(kind, partial(self.trainer.look_at, batch))
            with renewing(self.model, norms):
                for batch in shown:
                    self.trainer.look_at(batch)
            return self.measure()

    def ablated(self, one: Lifecycle) -> Measurement:
        """Evaluate with one graft at alpha 0; booked."""
        place = self.places[one.layer_id]
        seeds = slice(*seed_range(place, one.seed_id))
        alpha = place.state.alpha[seeds].clone()
        place.state.alpha[seeds] = 0
        try:
            return self.measure()
        finally:
            place.state.alpha[seeds] = alpha

    def _trace_evaluation(self) -> None:
        with self.tracing.of_evaluation():
            self.judge.measure()

    @property
    def host_is_finite(self) -> bool:
        """Whether all parameters of the host are; waits for the device."""
        host = [p for name, p in self.model.named_parameters() if not is_espers(name)]
        return bool(torch.stack([torch.isfinite(parameter).all() for parameter in host]).all())

    def capture(self) -> dict[str, Any]:
        """Body and clock of the run as it is."""
        return {"body": self.snapshots.body(), "clock": self.snapshots.clock() | self._counters()}

    def keep(self) -> dict[str, Any]:
        """As :meth:`capture`, for later."""
        return {"body": self.snapshots.keep(), "clock": self.snapshots.clock() | self._counters()}

    def restore(self, captured: dict[str, Any], *, is_spare: bool = False) -> None:
        """Inverse of :meth:`capture` and of :meth:`keep`.

        Args:
            captured: where to go back to.
            is_spare: whether it is needed no more, and may be used up.
        """
        clock, body = captured["clock"], captured["body"]
        self.snapshots.restore_body(body if is_spare else self.snapshots.fetch(body))
        self.snapshots.restore_clock(clock)
        self.trainer.step, self.trainer.peak_lr, self.epoch = clock["step"], clock["peak_lr"], clock["epoch"]
        self.trainer.rates = clock["rates"]
        self._structure = None

    def take_over(
        self, kept: Kept, seeds_of: tuple[int, ...] = (), *, is_rollback: bool = False, has_gradients: bool = True
    ) -> None:
        """Go on with what another body has learned, under the run's own clock.

        Learning rates, the states of seeds and the grafts that wait for their round stay as they are.

        Args:
            kept: body of an arm, or from before a graft.
            seeds_of: lifecycles whose seeds' state comes from there too.
            is_rollback: whether learning rates come from there too, and the versions of those seeds do not.
            has_gradients: whether those that were still accumulating there go on doing so.
        """
        columns = {layer_id: clone(place.state.state_dict()) for layer_id, place in self.places.items()}
        waiting = {
            layer_id: {number: graft for number, graft in place.arena.grafts.items() if graft.slot is None}
            for layer_id, place in self.places.items()
        }
        body = self.snapshots.fetch(kept)
        if not has_gradients:
            body["grads"] = {}
        for layer_id in self.places:  # what trains in isolation does so for the run, not for an arm
            self.snapshots.renew(body, layer_id, "incubation")
        if not is_rollback:
            rates = self.snapshots.optimizer_settings()
            body = body | {"optimizer": body["optimizer"] | {"param_groups": rates}}
        self.snapshots.restore_body(body)
        for layer_id, place in self.places.items():
            theirs = torch.isin(place.state.lifecycle_id, torch.tensor(seeds_of, device=place.state.alpha.device))
            for name, column in place.state.named_buffers():
                is_theirs = theirs & (name != "version") if is_rollback else theirs
                column.copy_(torch.where(is_theirs, column, columns[layer_id][name].to(column.device)))
            for number in seeds_of:
                place.incubation.discard(number)
            live = {graft.lifecycle: graft for graft in place.arena.live}
            place.arena.grafts = live | {n: graft for n, graft in waiting[layer_id].items() if n not in seeds_of}
        self._structure = None

    def restructured(self) -> None:
        """Something has changed what a step costs."""
        self._structure = None

    def _counters(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"step": trainer.step, "peak_lr": trainer.peak_lr, "epoch": self.epoch, "rates": trainer.rates}


_WAITING = frozenset({State.GERMINATED, State.TRAINING})
