"""Steps of the run that can be taken once more, from a capture, on the same batches, with the same settings; rounds."""

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from esper.runtime.commands.undisturbed import undisturbed
from esper.runtime.judging.judge import Measurement
from esper.runtime.judging.weight_mean import WeightMean
from esper.runtime.record.books import Lifecycle
from esper.runtime.run import Run
from esper.runtime.state.batch_store import BatchStore, ReplayError
from esper.runtime.state.batches import copy_of
from esper.runtime.state.module_state import Facts, ModuleHistory, module_facts, set_module_facts
from esper.runtime.state.random_state import restore_random_state
from esper.runtime.state.snapshot import Kept
from esper.runtime.training.loss_sum import summable
from esper.runtime.training.optimizer_settings import Settings
from esper.runtime.trying.steps import Step

CURVE_POINTS = 20
"""Points of an arm's learning curve, at most."""

LAG_POINTS, LAG_FROM = 5, 0.6
"""Points over which an arm is compared with the run while it trains, and the share of a curve from which it is."""

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

    def __post_init__(self) -> None:
        if isinstance(self.pending, Tensor) and self.pending.dim():
            raise ValueError(f"the sum of pending losses is one number, not of shape {list(self.pending.shape)}")

    def add(self, loss: Tensor | float) -> None:
        """One more step; nothing is read from the device."""
        self.pending, self.count = self.pending + summable(loss), self.count + 1

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
        batches: by value, or drawn again by the loader.
        settings: of the optimizer at every step; None where it rested.
        flops: training FLOPs of the run at every step.
        modules: what they were before every step, besides tensors.
        first_loss: of the first step; None where nobody knows it.
        first_threads: threads of torch in that step; None where it was made by another process.
        run: capture of the run at the end, once arms run.
        run_facts: of the modules there.
        arm_step: steps that the arm under way has done.
        curve: of the arm under way.
    """

    start: dict[str, Any]
    live: list[int]
    batches: BatchStore
    settings: list[Settings | None] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    modules: ModuleHistory = field(default_factory=ModuleHistory)
    first_loss: Tensor | float | None = None
    first_threads: int | None = None
    run_facts: Facts | None = None
    run: dict[str, Any] | None = None
    arm_step: int = 0
    curve: Curve = field(default_factory=Curve)

    def to_dict(self) -> dict[str, Any]:
        """The window as a nested state; :meth:`from_dict` is the inverse."""
        plain = {"batches": self.batches.state_dict(), "modules": self.modules.changes, "curve": asdict(self.curve)}
        return {**vars(self), **plain, "first_threads": None}

    @classmethod
    def from_dict(cls, saved: dict[str, Any], batches: BatchStore) -> Self:
        """Inverse of :meth:`to_dict`; ``batches`` is an empty store, which takes the saved ones."""
        batches.load_state_dict(saved["batches"])
        modules = ModuleHistory(saved["modules"])
        return cls(**{**saved, "batches": batches, "modules": modules, "curve": Curve(**saved["curve"])})

    def has_other_groups(self, count: int) -> bool:
        """Whether the run has stepped with another number of parameter groups than ``count``, which it has now."""
        first = next((settings for settings in self.settings if settings is not None), None)
        return first is not None and len(first) != count

    @property
    def num_steps(self) -> int:
        """Steps of the whole window, once it is over."""
        return len(self.batches)

    def rewind(self) -> None:
        """The next arm starts from the beginning."""
        self.arm_step, self.curve = 0, Curve()

    def remember(self, step: Step) -> None:
        """One more step of the run."""
        if not len(self.batches):
            self.first_loss = step.loss.clone() if isinstance(step.loss, Tensor) else step.loss
            self.first_threads = torch.get_num_threads()
        self.batches.add(step.batch)
        self.settings.append(step.settings)
        self.flops.append(step.flops)
        if step.facts is not None:
            self.modules.remember(step.facts, step.streams)

    def end(self, run: Run) -> None:
        """Arms are to run: remember where the run stands. Once only."""
        if self.run is None:
            self.run, self.run_facts = run.captures.keep(), module_facts(run.model)

    def restore_run(self, run: Run) -> None:
        """Go back to where the run stood when the window ended."""
        assert self.run is not None
        with undisturbed():
            run.captures.restore(self.run)
            if self.run_facts is not None:
                set_module_facts(run.model, self.run_facts)


@dataclass(kw_only=True)
class Round(Window):
    """A round under way; everything in it is stored with a checkpoint.

    Attributes:
        number: counts the rounds of a run from 1.
        start_step: step at which it was captured.
        end_step: step at which the arms run.
        boundaries: how many the run had passed when it was captured, the one at which it was among them.
        candidates: numbers of the lifecycles on trial.
        run_mean: of the run's weights, up to the next mark of the window; in the end up to its last step.
        marks: the means that ended before, by the steps of the window up to there.
        twin: the run's evaluation, by the mean there, where it stood best.
        twin_steps: the steps of the window up to there.
        arm: index of the candidate whose arm runs.
        arm_steps: how many steps it will take, once that is known.
        arm_mean: of its weights at their end.
        best: the arm that would be adopted: its lifecycle, body and held-out loss; None if none has beaten the twin.
        beaten: how many arms ended with a loss that was no lower than the twin's.
        is_at_equal_steps: whether arms take as many steps as the run did in the window.
        run_curve: of the run in the window; only where arms take as many steps.
    """

    number: int
    start_step: int
    end_step: int
    boundaries: int
    candidates: list[int]
    run_mean: WeightMean = field(default_factory=WeightMean)
    marks: dict[int, Kept] = field(default_factory=dict)
    twin: Measurement | None = None
    twin_steps: int | None = None
    arm: int = 0
    arm_steps: int | None = None
    arm_mean: WeightMean = field(default_factory=WeightMean)
    best: dict[str, Any] | None = None
    beaten: int = 0
    is_at_equal_steps: bool = False
    run_curve: Curve = field(default_factory=Curve)

    def to_dict(self) -> dict[str, Any]:
        """The round as a nested state; :meth:`from_dict` is the inverse."""
        return {
            **super().to_dict(),
            "twin": None if self.twin is None else self.twin.to_dict(),
            "run_mean": self.run_mean.to_dict(),
            "arm_mean": self.arm_mean.to_dict(),
            "run_curve": asdict(self.run_curve),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], batches: BatchStore) -> Self:
        """Inverse of :meth:`to_dict`."""
        twin = None if saved["twin"] is None else Measurement(**saved["twin"])
        means = {name: WeightMean(**saved[name]) for name in ("run_mean", "arm_mean")}
        curve = Curve(**saved["run_curve"])
        return super().from_dict({**saved, "twin": twin, "run_curve": curve, **means}, batches)

    def remember(self, step: Step) -> None:
        super().remember(step)
        if not self.is_at_equal_steps:
            return
        self.run_curve.add(step.loss)
        if len(self.batches) % _interval(self.num_steps) == 0:
            self.run_curve.close(self.start_step + len(self.batches), 0)

    @property
    def num_steps(self) -> int:
        """Steps of the whole window, those to come among them."""
        return self.end_step - self.start_step

    @property
    def lag(self) -> float | None:
        """By how much the arm's training loss lies above the run's in the same steps, relative to it; over the last
        points of their curves. None before there are enough of them."""
        points = len(self.curve.train_losses)
        if points < LAG_FROM * CURVE_POINTS or points > len(self.run_curve.train_losses):
            return None
        arm, run = (sum(one.train_losses[points - LAG_POINTS : points]) for one in (self.curve, self.run_curve))
        return (arm - run) / abs(run) if run else None

    def rewind(self) -> None:
        """The next arm starts from the beginning, and has to see anew how long it will be."""
        super().rewind()
        self.arm_steps = None
        self.arm_mean = WeightMean()


def replay_step(run: Run, window: Window, payers: list[Lifecycle]) -> int:
    """Take the next step of a window once more, in the arm that runs; ``payers`` are booked for it.

    Returns:
        Its FLOPs.

    Raises:
        ReplayError: if it is the first, which computes what the run did, and has another loss; if the optimizer
            steps for the first time where the run's rested, or rests where it stepped; or if its batch is not what it
            was.
    """
    index = window.arm_step
    batch, settings = copy_of(window.batches[index]), window.settings[index]
    facts = window.modules.before(index) if index < len(window.modules.changes) else {}
    set_module_facts(run.model, facts)
    restore_random_state(window.modules.streams(index))
    with run.editing.noticed(batch), run.accumulation.repeated(facts):
        loss, flops = run.costs.step(batch, partial(run.trainer.train, replayed=(settings,)))
    run.costs.charge(flops, payers)
    if index == 0:
        _check_first(run, window, loss)
    if not any(islice(window.settings, index)):
        _check_update(run, in_run=settings is not None)
    window.arm_step += 1
    run.trainer.step += 1
    run.advance(loss)
    window.curve.add(loss)
    if window.arm_step % _interval(window.num_steps) == 0:
        window.curve.close(run.step, run.costs.train_flops)
    return flops


def _interval(steps: int) -> int:
    """Steps from one point of a curve to the next."""
    return -(-steps // CURVE_POINTS)


def _check_update(run: Run, *, in_run: bool) -> None:
    """Up to the first update of the parameters arm and run compute the same, so that it comes in the same step.

    Behind a gradient scaler the gradients of a graft may have overflown, so that an arm leaves out an update.
    """
    in_arm = run.trainer.has_updated
    if in_arm == in_run or (in_run and run.trainer.scaler is not None):
        return
    raise ReplayError(
        f"the optimizer {'stepped' if in_run else 'rested'} in a step that was taken once more and "
        f"{'rested' if in_run else 'stepped'} there now, so nothing can be compared: train_step counts batches by "
        "something that no step is given anew. Put that into extra or into a plain attribute of a module, or give "
        "Session loss and accumulate in place of train_step"
    )


def _check_first(run: Run, window: Window, loss: Tensor | float) -> None:
    """In the first step nothing has grown yet, or alpha is 0: its loss is what the run's was. Waits for the device.

    To the byte, unless it may have been rounded otherwise: on a device, by another number of threads, or where a graft
    that was live is now computed as one batch with the candidate.
    """
    if window.first_loss is None:
        return
    was, now = float(window.first_loss), float(loss)
    is_exact = run.is_repeatable and window.first_threads == torch.get_num_threads() and not window.live
    dtype = loss.dtype if isinstance(loss, Tensor) else torch.float32
    tolerance = 0.0 if is_exact else torch.finfo(dtype).eps ** 0.5
    if not (math.isclose(was, now, rel_tol=tolerance) or (math.isnan(was) and math.isnan(now))):
        raise ReplayError(
            f"a step that was taken once more had the loss {now:.7g} and not {was:.7g}, so nothing can be compared: "
            "something changes the loss that no step is given anew. Put it into scheduler, scaler or extra, or into a "
            "plain attribute of a module, and draw random numbers from the global streams. In a loop of your own "
            "(after_step) a DataLoader that shuffles draws from them too: give it generator=torch.Generator(), or let "
            "session.step(batch) make the steps"
        )
