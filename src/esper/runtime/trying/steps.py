"""Training steps of the run, made so that they can be taken once more."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from esper.contracts.errors import ConfigError
from esper.runtime.run import Run
from esper.runtime.state.module_state import Facts, module_facts
from esper.runtime.training.optimizer_settings import Settings
from esper.runtime.trying.dry_run import dry_run

HAND_A_COPY = (
    "A training step changes its batch in place, or takes something out of it. It was made by the loop itself, so that "
    "nothing is left of the batch as it was: hand the step a copy, or let session.step(batch) make it."
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training step.

    Attributes:
        batch: as it was before the step, unless ``is_edited``.
        loss: a detached scalar.
        flops: of the step.
        settings: with which the optimizer stepped; None if it rested.
        facts: of the modules before the step, where it is to be taken once more.
        is_edited: whether the step has changed its batch, and nobody knew that it would.
    """

    batch: Any
    loss: Tensor | float
    flops: int
    settings: Settings | None
    facts: Facts | None
    is_edited: bool = False


class Steps:
    """Makes training steps.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._is_first = True

    def make(self, batch: Any, *, in_window: bool) -> Step:
        """Train on a batch.

        Args:
            batch: what the user's ``loss`` or ``train_step`` takes.
            in_window: whether the step will be taken once more, so that it is noted what the modules are now.
        """
        run = self._run
        dry_run(run, batch)
        was_known, is_kept = run.editing.is_known, in_window or bool(run.books.alive)
        kept = run.editing.fresh(batch) if is_kept else batch
        facts = module_facts(run.model) if in_window else None
        if not was_known and (is_kept or self._is_first):
            with run.editing.noticed(batch):
                loss, flops = run.costs.step(batch, run.trainer.train)
        else:
            loss, flops = run.costs.step(batch, run.trainer.train)
        self._is_first = False
        return Step(
            batch=kept,
            loss=loss,
            flops=flops,
            settings=run.trainer.take_settings(),
            facts=facts,
            is_edited=run.editing.is_known and not was_known,
        )

    def made(self, batch: Any, loss: Tensor | float, *, in_window: bool) -> Step:
        """A step that the caller's own loop has made.

        Modules are noted as they are after it.

        Raises:
            ConfigError: if such a step changes its batch.
        """
        run = self._run
        settings = run.trainer.take_settings()
        facts = module_facts(run.model) if in_window else None
        dry_run(run, batch)
        flops = run.costs.of_step(batch)
        if run.editing.is_known:
            raise ConfigError(HAND_A_COPY)
        loss = loss.detach() if isinstance(loss, Tensor) else loss
        return Step(batch=batch, loss=loss, flops=flops, settings=settings, facts=facts)
