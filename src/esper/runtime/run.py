"""The run that Session, rounds and keeping share: its objects, its seeds, its books."""

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from esper.checkpoint.tree import clone
from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, TransitionError, closest
from esper.contracts.lifecycle import LIVE, OUTCOMES, State
from esper.contracts.reports import Observation
from esper.kasmina.arena import Group
from esper.kasmina.gates import Measured, gate
from esper.kasmina.grafting import advance
from esper.kasmina.hosts import host_parameters, places
from esper.kasmina.layer import Place
from esper.kasmina.lifecycle import Birth, discard, is_finite, seed_range, transition
from esper.runtime.books import Books, Lifecycle
from esper.runtime.flops import FlopMeter, shapes_of
from esper.runtime.journal import Journal
from esper.runtime.judging import Judge, Measurement
from esper.runtime.snapshot import Snapshots
from esper.runtime.training import Trainer

GATED = frozenset(
    {State.TRAINING, State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING, State.FOSSILIZED}
)

ASKABLE = (State.GERMINATED, State.CULLED, State.CANCELLED)
"""What may be asked for from outside. The rest follows from what was measured, or from the passing of time."""


class Run:
    """State changes of seeds happen here and nowhere else.

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
        self.arm: str | None = None
        self.epoch = 0
        self.ramp_steps = max(1, round(config.ramp_fraction * planned_steps))
        self.recent: list[Any] = []  # last batches, for a blend-out after the data has ended
        self.lock = threading.RLock()  # commands may come from other threads
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

    def submit(self, command: Command) -> Answer:
        """Carry out a command from outside or refuse it; a refusal changes nothing. Never raises for a refusal."""
        with self.lock:
            if not isinstance(command.target, State) or command.target not in ASKABLE:
                names = ", ".join(state.name for state in ASKABLE)
                return self._refuse(command, f"{command.target!r} cannot be asked for. What can: {names}.")
            if self.arm is not None:
                return self._refuse(command, "The arms of a round are running. Ask again after this step.")
            return self.carry_out(command)

    def carry_out(self, command: Command, measured: Measured | None = None) -> Answer:
        """Carry out any command or refuse it.

        Args:
            command: what to do.
            measured: values for the gate of a promotion.
        """
        try:
            return self._apply(command, measured or {})
        except (TransitionError, ConfigError) as error:
            return self._refuse(command, str(error))

    def move(self, one: Lifecycle, target: State, reason: str, measured: Measured | None = None) -> Answer:
        """Command a lifecycle's seeds on Esper's own behalf."""
        return self.carry_out(Command(one.layer_id, one.seed_id, target, reason, who="session"), measured)

    def promote(self, one: Lifecycle, target: State, **measured: float | bool | None) -> Answer:
        """Move a lifecycle on if the gate lets it; the parameters' finiteness is always measured."""
        finite = is_finite(self.places[one.layer_id], one.number)
        return self.move(one, target, "gate passed", {"is_finite": finite, **measured})

    def discard(self, one: Lifecycle) -> None:
        """Take out the graft of a lifecycle that failed and close its record."""
        place = self.places[one.layer_id]
        if one.number in place.arena.grafts:
            discard(place, one.number)
        self._structure = None
        self._close(one)

    def advance(self) -> None:
        """Clocks and alphas of all places with live grafts, after a training step."""
        for layer_id in {one.layer_id for one in self.books.alive.values() if one.state not in _WAITING}:
            advance(self.places[layer_id].state)

    def blend_outs(self) -> Iterator[Lifecycle]:
        """Culled and cancelled lifecycles whose grafts have been blended out by now."""
        for one in self.in_state(State.CULLED, State.CANCELLED):
            if self.step - one.since_step >= self.ramp_steps:
                yield one

    def faults(self) -> dict[str, Tensor]:
        """A copy of the guard's flags of every place with grafts."""
        live = {one.layer_id for one in self.books.alive.values() if one.state in LIVE}
        grown = {layer_id for layer_id, place in self.places.items() if place.is_growing}
        return {layer_id: _to_host(self.places[layer_id].state.fault) for layer_id in sorted(live | grown)}

    def cost(self, batch: Any) -> int:
        """FLOPs of a training step on a batch.

        One of a kind that was never counted is made once, and undone.
        """

        def step_and_undo() -> None:
            here = self.capture()
            try:
                self.trainer.train(batch, replayed=(None,))
            finally:
                self.restore(here)
                self.trainer.take_settings()

        return self._meter.cost((shapes_of(batch), self.structure), step_and_undo)

    def measure(self) -> Measurement:
        """Evaluate for a judgement; booked."""
        self.books.judging_flops += self._meter.cost(("evaluate", self.structure), self.judge.measure)
        return self.judge.measure()

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

    def observe(self) -> Observation:
        """What the controller sees now."""
        return Observation(
            step=self.step,
            planned_steps=self.planned_steps,
            epoch=self.epoch,
            train_losses=self.books.train_losses,
            select_losses=self.books.select_losses,
            places=[place.report() for place in self.places.values()],
            rounds_done=self.books.rounds_begun,
            host_parameters=host_parameters(self.model),
            grown_parameters=sum(place.arena.num_parameters for place in self.places.values()),
        )

    def capture(self) -> dict[str, Any]:
        """Body and clock of the run as it is."""
        return {"body": self.snapshots.body(), "clock": self.snapshots.clock() | self._counters()}

    def restore(self, captured: dict[str, Any]) -> None:
        """Inverse of :meth:`capture`."""
        clock = captured["clock"]
        self.snapshots.restore_body(captured["body"])
        self.snapshots.restore_clock(clock)
        self.trainer.step, self.trainer.peak_lr, self.epoch = clock["step"], clock["peak_lr"], clock["epoch"]
        self.trainer.rates = clock["rates"]
        self._structure = None

    def take_over(self, body: dict[str, Any], seeds_of: tuple[int, ...] = ()) -> None:
        """Go on with what another body has learned, under the run's own clock.

        Learning rates, the states of seeds and the grafts that wait for their round stay as they are.

        Args:
            body: of an arm, or from before a graft.
            seeds_of: lifecycles whose seeds' state comes from ``body`` too.
        """
        columns = {layer_id: clone(place.state.state_dict()) for layer_id, place in self.places.items()}
        waiting = {
            layer_id: {number: graft for number, graft in place.arena.grafts.items() if graft.slot is None}
            for layer_id, place in self.places.items()
        }
        rates = self.snapshots.optimizer_settings()
        self.snapshots.restore_body(body | {"optimizer": body["optimizer"] | {"param_groups": rates}})
        for layer_id, place in self.places.items():
            theirs = torch.isin(place.state.lifecycle_id, torch.tensor(seeds_of, device=place.state.alpha.device))
            for name, column in place.state.named_buffers():
                column.copy_(torch.where(theirs, column, columns[layer_id][name].to(column.device)))
            live = {graft.lifecycle: graft for graft in place.arena.live}
            place.arena.grafts = live | {n: graft for n, graft in waiting[layer_id].items() if n not in seeds_of}
        self._structure = None

    def _counters(self) -> dict[str, Any]:
        trainer = self.trainer
        return {"step": trainer.step, "peak_lr": trainer.peak_lr, "epoch": self.epoch, "rates": trainer.rates}

    def _apply(self, command: Command, measured: Measured) -> Answer:
        place = self.places.get(command.layer_id)
        if place is None:
            raise TransitionError(f"There is no place {command.layer_id!r}. {closest(command.layer_id, self.places)}")
        target, one = command.target, self._addressed(place, command)
        if target in GATED:
            result = gate(target, measured, gate_z=self.config.gate_z)
            if not result.passed:
                raise TransitionError(f"The gate to {target.name} is shut: {result}.")
        birth = None
        if target is State.GERMINATED:
            birth = Birth(self.books.lifecycles_begun + 1, self.ramp_steps)
        old = State.DORMANT if one is None else one.state
        if target is State.DORMANT:
            old = State(int(place.state.lifecycle[slice(*seed_range(place, command.seed_id))][0]))
        version = transition(place, command, birth=birth, embargo_epochs=self.config.embargo_epochs)
        self._structure = None
        if birth is not None:
            one = self._open(place, command, birth)
        self._log_command(
            "transition", command, source=old.name, lifecycle=one.number if one else None, gates=dict(measured)
        )
        if one is not None and target is not State.GERMINATED:
            one.state, one.since_step = target, self.step
            if target in GATED:
                one.gates[target.name] = dict(measured)
            if target in OUTCOMES:
                one.reason = command.reason
                if target is State.FOSSILIZED or old not in LIVE:
                    self._close(one)
        return Answer(True, version=version)

    def _addressed(self, place: Place, command: Command) -> Lifecycle | None:
        seeds = slice(*seed_range(place, command.seed_id))
        number = int(place.state.lifecycle_id[seeds].max())
        return self.books.alive.get(number)

    def _open(self, place: Place, command: Command, birth: Birth) -> Lifecycle:
        graft = place.arena.grafts[birth.lifecycle]
        self.books.lifecycles_begun += 1
        one = Lifecycle(
            number=birth.lifecycle,
            layer_id=command.layer_id,
            seed_id=command.seed_id,
            blueprint=graft.blueprint.id,
            settings=graft.blueprint.settings,
            parameters=graft.num_parameters,
            born_step=self.step,
            state=State.GERMINATED,
            since_step=self.step,
        )
        self.books.alive[one.number] = one
        return one

    def _close(self, one: Lifecycle) -> None:
        self.books.alive.pop(one.number, None)
        report = one.report(self.step)
        self.books.reports.append(report)
        self.journal.write("field_report", step=self.step, **report.to_dict())

    def _refuse(self, command: Command, reason: str) -> Answer:
        self._log_command("refused", command, reason=reason, asked=command.reason)
        return Answer(False, reason)

    def _log_command(self, event: str, command: Command, **fields: Any) -> None:
        self.journal.write(
            event,
            **{
                "step": self.step,
                "epoch": self.epoch,
                "arm": self.arm,
                "layer_id": command.layer_id,
                "seed_id": command.seed_id,
                "target": getattr(command.target, "name", str(command.target)),
                "who": command.who,
                "reason": command.reason,
                "run_flops": self.books.run_flops,
                "arm_flops": self.books.arm_flops,
                "judging_flops": self.books.judging_flops,
                **fields,
            },
        )


_WAITING = frozenset({State.GERMINATED, State.TRAINING})


def _to_host(flags: Tensor) -> Tensor:
    """A copy that is read one step later, so that nobody waits for the device now."""
    if flags.device.type == "cpu":
        return flags.clone()
    return torch.empty_like(flags, device="cpu", pin_memory=True).copy_(flags, non_blocking=True)
