"""Steps of the run that can be taken once more: from a capture, on the same batches, with the same settings."""

from dataclasses import dataclass, field
from typing import Any

from esper.runtime.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.training import Settings


@dataclass(kw_only=True)
class Window:
    """Steps that the run has taken since it was captured, and how far an arm has come in taking them again.

    Attributes:
        start: capture of the run before the first of them.
        live: numbers of the lifecycles whose grafts were live there; they must be so to the end.
        batches: by reference: a loader must not reuse their memory.
        settings: of the optimizer at every step; None where it rested.
        flops: training FLOPs of the run at every step.
        run: capture of the run at the end, once arms run.
        arm_step: steps that the arm under way has done.
    """

    start: dict[str, Any]
    live: list[int]
    batches: list[Any] = field(default_factory=list)
    settings: list[Settings | None] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    run: dict[str, Any] | None = None
    arm_step: int = 0

    def remember(self, batch: Any, settings: Settings | None, flops: int) -> None:
        """One more step of the run."""
        self.batches.append(batch)
        self.settings.append(settings)
        self.flops.append(flops)


def replay_step(run: Run, window: Window, payers: list[Lifecycle]) -> None:
    """Take the next step of a window once more, in the arm that runs; ``payers`` are booked for it."""
    batch, settings = window.batches[window.arm_step], window.settings[window.arm_step]
    flops = run.cost(batch)
    loss = run.trainer.train(batch, replayed=(settings,))
    run.charge(flops, payers)
    window.arm_step += 1
    run.trainer.step += 1
    run.advance(loss)
