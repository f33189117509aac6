"""Steps of the run that can be taken once more, from a capture, on the same batches, with the same settings; rounds."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from esper.runtime.books import Lifecycle
from esper.runtime.judging import Measurement
from esper.runtime.optimizer_settings import Settings
from esper.runtime.run import Run
from esper.runtime.weight_mean import WeightMean

CURVE_POINTS = 20
"""Points of an arm's learning curve, at most."""

OTHER_GROUPS = "the optimizer was given parameter groups meanwhile, with which its steps cannot be taken again"
"""Why a window ends without a verdict."""


@dataclass
class Curve:
    """Mean training losses along an arm.

    Attributes:
        steps: of the run that were taken again, up to every point.
        flops: training FLOPs that the run had taken by then, this arm's and all others' among them.
        train_losses: mean since the point before.
        pending: sum of the losses since the last point, on the device, and
        count: how many they are.
    """

    steps: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    pending: Tensor | float = 0.0
    count: int = 0

    def add(self, loss: Tensor | float) -> None:
        """One more step; nothing is read from the device."""
        self.pending, self.count = self.pending + loss, self.count + 1

    def close(self, step: int, flops: int) -> None:
        """End a point here, if there was a step; reads from the device."""
        if self.count:
            self.steps.append(step)
            self.flops.append(flops)
            self.train_losses.append(float(self.pending) / self.count)
            self.pending, self.count = 0.0, 0

    def points(self) -> dict[str, list[int] | list[float]]:
        """The curve for the audit log."""
        return {"steps": self.steps, "flops": self.flops, "train_losses": self.train_losses}


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
        curve: of the arm under way.
    """

    start: dict[str, Any]
    live: list[int]
    batches: list[Any] = field(default_factory=list)
    settings: list[Settings | None] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    run: dict[str, Any] | None = None
    arm_step: int = 0
    curve: Curve = field(default_factory=Curve)

    def to_dict(self) -> dict[str, Any]:
        """The window as a nested state; :meth:`from_dict` is the inverse."""
        return {**vars(self), "curve": asdict(self.curve)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        return cls(**{**saved, "curve": Curve(**saved["curve"])})

    def has_other_groups(self, count: int) -> bool:
        """Whether the run has stepped with another number of parameter groups than ``count``, which it has now."""
        first = next((settings for settings in self.settings if settings is not None), None)
        return first is not None and len(first) != count

    def rewind(self) -> None:
        """The next arm starts from the beginning."""
        self.arm_step, self.curve = 0, Curve()

    def remember(self, batch: Any, settings: Settings | None, flops: int) -> None:
        """One more step of the run."""
        self.batches.append(batch)
        self.settings.append(settings)
        self.flops.append(flops)


@dataclass(kw_only=True)
class Round(Window):
    """A round under way; everything in it is stored with a checkpoint.

    Attributes:
        number: counts the rounds of a run from 1.
        start_step: step at which it was captured.
        end_step: step at which the arms run.
        boundaries: how many the run had passed when it was captured, the one at which it was among them.
        candidates: numbers of the lifecycles on trial.
        run_mean: of the run's weights at the end of the window.
        twin: the run's evaluation there, by that mean.
        arm: index of the candidate whose arm runs.
        arm_steps: how many steps it will take, once that is known.
        arm_mean: of its weights at their end.
        best: the arm that would be adopted: its lifecycle, body and held-out loss; None if none has beaten the twin.
        beaten: how many arms ended with a loss that was no lower than the twin's.
    """

    number: int
    start_step: int
    end_step: int
    boundaries: int
    candidates: list[int]
    run_mean: WeightMean = field(default_factory=WeightMean)
    twin: Measurement | None = None
    arm: int = 0
    arm_steps: int | None = None
    arm_mean: WeightMean = field(default_factory=WeightMean)
    best: dict[str, Any] | None = None
    beaten: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The round as a nested state."""
        return {
            **super().to_dict(),
            "twin": None if self.twin is None else self.twin.to_dict(),
            "run_mean": self.run_mean.to_dict(),
            "arm_mean": self.arm_mean.to_dict(),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        twin = None if saved["twin"] is None else Measurement(**saved["twin"])
        means = {name: WeightMean(**saved[name]) for name in ("run_mean", "arm_mean")}
        return super().from_dict({**saved, "twin": twin, **means})

    def rewind(self) -> None:
        """The next arm starts from the beginning, and has to see anew how long it will be."""
        super().rewind()
        self.arm_steps = None
        self.arm_mean = WeightMean()


def replay_step(run: Run, window: Window, payers: list[Lifecycle]) -> None:
    """Take the next step of a window once more, in the arm that runs; ``payers`` are booked for it."""
    batch, settings = window.batches[window.arm_step], window.settings[window.arm_step]
    flops = run.cost(batch)
    loss = run.trainer.train(batch, replayed=(settings,))
    run.charge(flops, payers)
    window.arm_step += 1
    run.trainer.step += 1
    run.advance(loss)
    window.curve.add(loss)
    if window.arm_step % -(-len(window.batches) // CURVE_POINTS) == 0:
        window.curve.close(run.step, run.train_flops)
