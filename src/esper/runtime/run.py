"""The run that all of growth shares: its objects, its seeds, its books."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from esper.contracts.config import GrowthConfig
from esper.contracts.events import Note
from esper.contracts.flags import Flags
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.host.anchoring import is_espers, places
from esper.kasmina.places.grafting import advance, needs_signals
from esper.kasmina.places.place import Place
from esper.runtime.commands.inbox import Inbox
from esper.runtime.commands.seeds import Seeds
from esper.runtime.costs.costs import Costs
from esper.runtime.costs.forecast import Forecast
from esper.runtime.debugging import Debug
from esper.runtime.judging.evaluations import Evaluations
from esper.runtime.judging.judge import Judge
from esper.runtime.record.books import FALLING, Books, Lifecycle
from esper.runtime.record.journal import Journal
from esper.runtime.record.vitals import Pulse
from esper.runtime.state.batch_store import BatchStore, LatestBatches
from esper.runtime.state.batches import Editing, copy_of
from esper.runtime.state.captures import Captures
from esper.runtime.state.module_state import module_facts, set_module_facts
from esper.runtime.state.snapshot import Snapshots
from esper.runtime.training.accumulation import Accumulation
from esper.runtime.training.compiled import GivenUp, allow_structures, calls_compiled
from esper.runtime.training.late import Late
from esper.runtime.training.loss_sum import LossSum
from esper.runtime.training.ranks import checksums
from esper.runtime.training.tracing import Tracing
from esper.runtime.training.trainer import Trainer
from esper.shards import is_sharded, own


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
        functions: the caller's own, which may call compiled models.
        extra: the caller's further objects, by name.
        loader: where batches come from, if it is known.
        is_counting: whether FLOPs are counted.
        flags: feature flags of the model.

    Attributes:
        accumulation: of gradients, by the caller's own code.
        arm: name of the arm that runs; None in the run itself.
        editing: whether training steps edit their batches.
        flags: feature flags; others where it goes on and one was switched off since.
        evaluations: what its models are worth.
        captures: goes to states of it and back.
        losses: training losses since the last boundary.
        forecast: of what steps will cost.
        recent: last batches, for a blend-out after the data has ended.
        inbox: who may change it, and what other threads ask.
        pulse: how the process is doing.
        debug: looks at all that happens, where that was asked for.
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
        *,
        functions: Sequence[object] = (),
        extra: Mapping[str, Any],
        loader: Any = None,
        is_counting: bool = True,
        flags: Flags,
    ) -> None:
        self.model, self.config, self.planned_steps = model, config, planned_steps
        self.trainer, self.judge, self.snapshots, self.journal = trainer, judge, snapshots, journal
        self.ranks = trainer.ranks
        self.places: dict[str, Place] = {place.layer_id: place for place in places(model)}
        self.books = Books()
        self.tracing = Tracing(model, journal)
        self.costs = Costs(
            self.places,
            self.tracing,
            journal,
            books=lambda: self.books,
            rehearse=self._rehearse,
            is_compiled=partial(calls_compiled, model, *functions),
            is_counting=is_counting,
            ranks=self.ranks,
        )
        self.given_up = GivenUp(journal)
        if self.costs.is_compiled():
            allow_structures()
        self.arm: str | None = None
        self.is_finished = False
        self.ramp_steps = max(1, round(config.ramp_fraction * planned_steps))
        self.seeds = Seeds(self.places, config, journal, self, self.costs.restructured, self.ramp_steps)
        self.pulse = Pulse(journal, self.places, next(model.parameters()).device)
        self.inbox = Inbox(self._tell)
        self.losses, self.forecast = LossSum(), Forecast()
        self.editing = Editing()
        self.accumulation = Accumulation(extra)
        self.captures = Captures(self.places, snapshots, trainer, self.costs.restructured)
        self.evaluations = Evaluations(model, self.places, judge, trainer, self.costs, lambda: self.books)
        self.recent = LatestBatches(self.ramp_steps, config.max_batch_bytes)
        self.flags = flags
        self.debug: Debug | None = None
        self._loader = loader

    @property
    def step(self) -> int:
        """Batches done; in an arm, the step of the run that it replays."""
        return self.trainer.step

    @property
    def epoch(self) -> int:
        """Epochs of the run that are over."""
        return self.trainer.epoch

    @property
    def is_repeatable(self) -> bool:
        """Whether work that is done once more has the same bytes: eagerly, on the CPU."""
        is_on_cpu = all(parameter.device.type == "cpu" for parameter in self.model.parameters())
        return is_on_cpu and not self.costs.is_compiled()

    @property
    def fraction(self) -> float:
        """Share of the planned steps that is done."""
        return self.step / self.planned_steps

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
            self.costs.isolated(partial(self.places[one.layer_id].incubation.learn, one.number), one)

    def begin_incubation(self, one: Lifecycle) -> None:
        """Let a graft in TRAINING train in isolation from the next step on, if the objective is any."""
        place = self.places[one.layer_id]
        graft = place.arena.grafts[one.number]
        lr = self.trainer.graft_lr() * (graft.blueprint.rate_at(graft.ports) if self.config.graft_lr is None else 1.0)
        place.incubation.begin(graft, self.config.objective, place.seed, lr)

    def end_incubation(self, one: Lifecycle) -> None:
        """Choose the bytes that the graft will be planted with; what that was worth goes into its record."""
        measured: dict[str, Any] = {}

        def end() -> None:
            incubation = self.places[one.layer_id].incubation
            measured.update(self.ranks.same(incubation.end(one.number), "what a graft has learned alone"))
            if (chosen := incubation.chosen(one.number)) is not None:
                self.ranks.copy_(chosen)

        self.costs.isolated(end, one)
        if measured:
            one.gates["incubation"] = measured

    def blend_outs(self) -> Iterator[Lifecycle]:
        """Culled and cancelled lifecycles whose grafts have been blended out by now."""
        for one in self.in_state(*FALLING):
            if self.step - one.since_step >= self.ramp_steps:
                yield one

    def faults(self) -> dict[str, Late]:
        """A copy of the guard's flags of every place with grafts."""
        live = {one.layer_id for one in self.books.alive.values() if one.state in LIVE}
        grown = {layer_id for layer_id, place in self.places.items() if place.is_growing}
        return self.ranks.most({layer_id: self.places[layer_id].state.fault for layer_id in sorted(live | grown)})

    def batch_store(self) -> BatchStore:
        """An empty store for the batches of a window."""

        def tell(text: str) -> None:
            self.journal.write(Note(text=text))

        return BatchStore(self.config.max_batch_bytes, self.snapshots.folder, self._loader, tell)

    def agree(self) -> None:
        """Bring what each rank has counted and sensed together, and see whether all still are the same."""
        if not self.ranks.are_several:
            return
        counted = (self.books.flops(), self.tracing.state_dict(), self.costs.state_dict())
        flops, traced, costs = self.ranks.same(counted, "what was counted")
        self.books.take_flops(flops)
        self.tracing.load_state_dict(traced)
        self.costs.load_state_dict(costs)
        sensed = [place.telemetry for place in self.places.values()]
        self.ranks.add_([part for one in sensed for part in (one.sums, one.gradient, one.gradient_steps)])
        for one, turns in zip(sensed, self.ranks.same([one.turns for one in sensed], "turns"), strict=True):
            one.turns = turns
        self.compare_ranks()

    def compare_ranks(self) -> None:
        """See whether all ranks hold the same states of seeds, and the same of what each holds whole.

        Raises:
            RankError: on all of them, if not.
        """
        if self.ranks.are_several:
            whole = ((name, one) for name, one in self.model.named_parameters() if not is_sharded(one))
            fossils = (
                (f"fossil {index} of {layer_id!r}", place.arena.fossil_bytes(index))
                for layer_id, place in self.places.items()
                for index in range(len(place.arena.fossils))
            )
            self.ranks.check_equal(checksums(chain(whole, fossils)), "parameters")
            columns = (
                (f"{column} of {layer_id!r}", getattr(place.state, column))
                for layer_id, place in self.places.items()
                for column in ("lifecycle", "version", "alpha")
            )
            self.ranks.check_equal(checksums(columns), "states of seeds")

    @property
    def host_is_finite(self) -> bool:
        """Whether all parameters of the host are, on all ranks; waits for the device."""
        host = [own(p) for name, p in self.model.named_parameters() if not is_espers(name)]
        is_finite = bool(torch.stack([torch.isfinite(parameter).all() for parameter in host]).all())
        return not self.ranks.any(not is_finite, "weights that are not finite")

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Whatever is done inside leaves no trace in body, clock and modules."""
        here, facts = self.captures.capture(), module_facts(self.model)
        without = [parameter for parameter in self.model.parameters() if parameter.grad is None]
        with self.trainer.signals.unmoved():
            try:
                yield
            finally:
                self.captures.restore(here, is_spare=True)
                set_module_facts(self.model, facts)
                for parameter in without:  # also those that no optimizer holds
                    parameter.grad = None
                self.trainer.take_settings()

    def _tell(self) -> None:
        self.pulse.write_if_due(self.arm)
        self.journal.deliver()

    def _rehearse(self, batch: Any) -> None:
        """A training step on a copy of a batch, made to be counted, and undone."""
        tried = copy_of(batch)
        with self.undone(), self.editing.noticed(tried):
            self.trainer.train(tried, replayed=(None,))


_WAITING = frozenset({State.GERMINATED, State.TRAINING})
