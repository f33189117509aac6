"""What a run costs: FLOPs are counted in the work itself, where it is new, and booked."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from esper.contracts.events import Note
from esper.kasmina.flops import FlopCounter
from esper.kasmina.grafts.colony import Colony
from esper.kasmina.grafts.group import Group
from esper.kasmina.places.place import Place
from esper.runtime.costs.flops import Counts, FlopMeter, count
from esper.runtime.record.books import Books, Lifecycle
from esper.runtime.record.journal import Journal
from esper.runtime.state.batches import Sizes, kind_and_sizes
from esper.runtime.training.ranks import Ranks
from esper.runtime.training.tracing import Tracing

T = TypeVar("T")


class Costs:
    """Counts training steps, evaluations and forward passes, each once per kind, and by a formula in the sizes.

    A kind is how a batch is built and what has grown. Where either is new, the real work is done under a counter, which
    changes no byte of it. Compiled models cannot be counted: there the work is done once more, eagerly, and undone; so
    it is for steps that the caller has made already. What that takes is booked as judging.

    Args:
        places: of the model, by name.
        tracing: watches what is counted.
        journal: where it is told that FLOPs are estimated.
        books: gives the books.
        rehearse: makes a training step on a batch and undoes it.
        is_compiled: whether anything that is called is compiled.
        is_counting: whether FLOPs are counted at all; all are 0 otherwise.
        ranks: who trains together. What is done once more, all do.
    """

    def __init__(
        self,
        places: Mapping[str, Place],
        tracing: Tracing,
        journal: Journal,
        *,
        books: Callable[[], Books],
        rehearse: Callable[[Any], None],
        is_compiled: Callable[[], bool],
        is_counting: bool,
        ranks: Ranks,
    ) -> None:
        self._places, self._tracing, self._journal, self._books = places, tracing, journal, books
        self._rehearse, self.is_compiled, self.is_counting = rehearse, is_compiled, is_counting
        self._ranks = ranks
        self._meter = FlopMeter()
        self._structure: tuple[object, ...] | None = None
        self._watched: set[object] = set()
        self._has_told = False

    @property
    def train_flops(self) -> int:
        """All FLOPs that made the model what it is: the run's, every arm's, and the judging."""
        books = self._books()
        return books.run_flops + books.arm_flops + books.judging_flops

    @property
    def structure(self) -> tuple[object, ...]:
        """What work costs depends on this alone, besides the batch."""
        if self._structure is None:
            self._structure = tuple(
                (layer_id, group.blueprint, len(group.grafts), group.is_live, group.grafts[0].ports)
                for layer_id, place in self._places.items()
                for group in place.arena.groups
                if isinstance(group, Group | Colony)
            )
        return self._structure

    def restructured(self) -> None:
        """Something has changed what work costs."""
        self._structure = None

    def charge(self, flops: int, payers: list[Lifecycle]) -> None:
        """Book FLOPs of an arm, or of training in isolation, on the lifecycles that they were spent for."""
        self._books().arm_flops += flops
        for index, one in enumerate(payers):
            one.flops += flops // len(payers) + (index < flops % len(payers))

    def step(self, batch: Any, train: Callable[[Any], Tensor | float]) -> tuple[Tensor | float, int]:
        """Make a training step. The first of a session is traced.

        Returns:
            What ``train(batch)`` returns, and its FLOPs.
        """
        counts, sizes = self._counts_of("step", batch)
        return self._done(
            counts,
            sizes,
            partial(train, batch),
            partial(self._rehearse, batch),
            self._tracing.of_a_step(),
            must_watch=self._tracing.rows is None,
        )

    def of_step(self, batch: Any) -> int:
        """FLOPs of a training step that was made elsewhere on a batch. One that is new is made again and undone."""
        counts, sizes = self._counts_of("step", batch)
        known = self._known(counts, sizes)
        if self._is_unknown(known) or known is None or self._tracing.rows is None:
            return self._apart(counts, sizes, partial(self._rehearse, batch), self._tracing.of_a_step())
        return known

    def forward(self, batch: Any, look: Callable[[Any], None], rehearse: Callable[[Any], None]) -> int:
        """Make a forward pass, ``look(batch)``; its FLOPs. Where it cannot be counted, ``rehearse(batch)`` is."""
        counts, sizes = self._counts_of("forward", batch)
        return self._done(counts, sizes, partial(look, batch), partial(rehearse, batch))[1]

    def evaluation(self, measure: Callable[[], T]) -> tuple[T, int]:
        """Evaluate, which is traced where something new has grown.

        Returns:
            What ``measure()`` returns, and its FLOPs.
        """
        is_unseen = self.structure not in self._watched
        self._watched.add(self.structure)
        return self._done(
            self._meter.of(("evaluate", self.structure)),
            (),
            measure,
            measure,
            self._tracing.of_evaluation(),
            must_watch=is_unseen and not self.is_counting and not self.is_compiled(),
        )

    @property
    def evaluation_flops(self) -> int | None:
        """Of one evaluation; None if that was not counted yet."""
        return self._known(self._meter.of(("evaluate", self.structure)), ())

    def isolated(self, work: Callable[[], object], payer: Lifecycle) -> None:
        """Do what a graft learns in isolation; it is counted each time, since every graft has work of its own."""
        if self.is_counting:
            self.charge(count(work), [payer])
        else:
            work()

    def state_dict(self) -> dict[str, Any]:
        """What was counted, and whether it was told that FLOPs are estimated."""
        return {"counted": self._meter.state_dict(), "has_told": self._has_told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._meter.load_state_dict(state["counted"])
        self._has_told = state["has_told"]

    def _counts_of(self, work: str, batch: Any) -> tuple[Counts, Sizes]:
        if not self.is_counting:
            return self._meter.of(None), ()
        kind, sizes = kind_and_sizes(batch)
        return self._meter.of((work, kind, self.structure)), sizes

    def _done(
        self,
        counts: Counts,
        sizes: Sizes,
        work: Callable[[], T],
        rehearse: Callable[[], object],
        watching: AbstractContextManager[None] | None = None,
        *,
        must_watch: bool = False,
    ) -> tuple[T, int]:
        """Do some work for real, and count and watch it if it is new; ``must_watch`` does so in any case."""
        flops = self._known(counts, sizes)
        is_due = self._is_due(counts, flops)
        is_known = flops is not None
        if self._ranks.are_several and self.is_compiled():
            is_known = not self._is_unknown(flops)
        if flops is not None and is_known and not must_watch and not is_due:
            return work(), flops
        watching = watching or nullcontext()
        if self.is_compiled():
            flops = self._apart(counts, sizes, rehearse, watching)
            return work(), flops
        with watching, torch.compiler.set_stance("force_eager"), FlopCounter() as counter:
            done = work()
        return done, self._learned(counts, sizes, counter.flops)

    def _known(self, counts: Counts, sizes: Sizes) -> int | None:
        """FLOPs of such work; None if it is to be counted."""
        if not self.is_counting:
            return 0
        known = counts.flops(sizes)
        if counts.is_estimated and not self._has_told:
            self._has_told = True
            text = (
                "FLOPs of batches of other shapes than were counted are estimated from those with about as many "
                "values: they follow no formula in the sizes. With compare='steps' they decide nothing."
            )
            self._journal.write(Note(text=text))
        return known

    def _is_unknown(self, flops: int | None) -> bool:
        """Whether work is to be done once more to be counted: on all ranks, if on one, for they wait for each other."""
        return self._ranks.any(flops is None, "whether a step is counted") if self.is_counting else False

    def _is_due(self, counts: Counts, flops: int | None) -> bool:
        """Whether work of a known kind is counted once more, where that disturbs nothing."""
        is_due = self.is_counting and flops is not None and counts.is_to_be_recounted()
        return is_due and not self.is_compiled()

    def _apart(
        self, counts: Counts, sizes: Sizes, rehearse: Callable[[], object], watching: AbstractContextManager[None]
    ) -> int:
        with watching, torch.compiler.set_stance("force_eager"), FlopCounter() as counter:
            rehearse()
        flops = self._learned(counts, sizes, counter.flops)
        self._books().judging_flops += flops
        return flops

    def _learned(self, counts: Counts, sizes: Sizes, flops: int) -> int:
        if not self.is_counting:
            return 0
        counts.learn(sizes, flops)
        return flops
