"""Training steps of the run, made so that they can be taken once more."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from esper.contracts.errors import ConfigError
from esper.runtime.run import Run
from esper.runtime.state.batches import copy_of
from esper.runtime.state.module_state import Facts, module_facts
from esper.runtime.state.random_state import moved_streams, random_state
from esper.runtime.training.optimizer_settings import Settings
from esper.runtime.trying.dry_run import dry_run

WHOLE = "It must be as it was before the step: where train_step takes something out of it, hand train_step a copy."

HAND_A_COPY = (
    "A training step changes its batch in place, or takes something out of it. It was made by the loop itself, so that "
    "nothing is left of the batch as it was: hand the step a copy, or let session.step(batch) make it."
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step.

    Attributes:
        batch: as it was before the step; a copy where it may be needed once more.
        loss: a detached scalar.
        flops: of the step.
        settings: with which the optimizer stepped; None if it rested.
        facts: of the modules before the step, and whether it only gathered gradients, where it is to be taken once
            more.
        streams: random streams from which was drawn since the step before, as loaders do that shuffle or augment.
    """

    batch: Any
    loss: Tensor | float
    flops: int
    settings: Settings | None
    facts: Facts | None
    streams: dict[str, Any] = field(default_factory=dict)


class Steps:
    """Makes training steps.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._left: dict[str, Any] | None = None  # random streams after the step before, where it was in a window

    def make(self, batch: Any, *, in_window: bool) -> Step:
        """Train on a batch.

        Args:
            batch: what the user's ``loss`` or ``train_step`` takes.
            in_window: whether the step will be taken once more, so that it is noted what the modules are now.
        """
        run = self._run
        dry_run(run, batch)
        kept = self._kept(batch, in_window=in_window)
        facts = module_facts(run.model) if in_window else None
        streams = self._drawn_from() if in_window else {}
        loss, flops = run.costs.step(batch, run.trainer.train)
        self._left = random_state() if in_window else None
        if facts is not None:
            facts |= run.accumulation.gathered()
        settings = run.trainer.take_settings()
        return Step(batch=kept, loss=loss, flops=flops, settings=settings, facts=facts, streams=streams)

    def made(self, batch: Any, loss: Tensor | float, *, in_window: bool) -> Step:
        """A step that the caller's own loop has made.

        Modules are noted as they are after it.

        Raises:
            ConfigError: if such a step changes its batch.
        """
        run = self._run
        settings = run.trainer.take_settings()
        facts = module_facts(run.model) | run.accumulation.gathered() if in_window else None
        kept = self._kept(batch, in_window=in_window)
        try:
            dry_run(run, batch)
            flops = run.costs.of_step(batch)
        except Exception as error:  # passed on
            error.add_note("Esper has called train_step once more on the batch that after_step was given. " + WHOLE)
            raise
        if run.editing.is_known:
            raise ConfigError(HAND_A_COPY)
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        return Step(batch=kept, loss=loss, flops=flops, settings=settings, facts=facts)

    def _drawn_from(self) -> dict[str, Any]:
        now = random_state()
        return now if self._left is None else moved_streams(self._left, now)

    def _kept(self, batch: Any, *, in_window: bool) -> Any:
        """The batch by value where it may be needed once more: steps may edit it, and loaders reuse its memory."""
        return copy_of(batch) if in_window or self._run.books.alive else batch
