"""One host in training, and the same host grown at several points of it: where each ends, and what could be seen early.

All have the FLOPs of the host. The seed, the batches and the learning rate at every share of the FLOPs are the same.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.chance.training import Training, judged
from esper.evaluation.training import SCHEDULES, flops_per_step
from esper.tasks.task import Samples

Maker = Callable[[], nn.Module]
WINDOWS = (0.02, 0.03, 0.05, 0.1, 0.2)
"""Shares of the run's FLOPs that an arm has had when it is compared with the run."""
CURVE_POINTS, LAG_POINTS, LAG_FROM = 20, 5, 0.4
"""Of the learning curve of a window: points, how many are compared, and from which share on."""


@dataclass(frozen=True)
class Data:
    """What is learned from and judged by.

    Attributes:
        batch: inputs and targets of a step.
        held_out: judges windows.
        test: judges ends.
    """

    batch: Callable[[int], tuple[Tensor, Tensor]]
    held_out: Samples
    test: Samples


@dataclass(frozen=True)
class Arm:
    """A way to grow.

    Attributes:
        name: as told.
        make: builds the grown network.
        at: share of the run's FLOPs.
        ramp: steps over which the rate of new weights rises.
        lost: share of the run's FLOPs that is spent elsewhere meanwhile.
    """

    name: str
    make: Maker
    at: float
    ramp: int = 0
    lost: float = 0.0


@dataclass(frozen=True)
class Tree:
    """A host and its arms.

    Attributes:
        host: its name.
        make: builds it.
        seed: of its weights and batches.
        lr, schedule: peak rate, and a name in ``SCHEDULES``.
        steps: of the host.
        warmup: of them, in which the rate rises.
        arms: that grow from it.
        unit: builds the network whose FLOPs ``steps`` counts; None for the host itself.
    """

    host: str
    make: Maker
    seed: int
    lr: float
    schedule: str
    steps: int
    warmup: int = 0
    arms: Sequence[Arm] = ()
    unit: Maker | None = None


def measured(tree: Tree, data: Data) -> dict[str, Any]:
    """Train a host and all its arms; plain values."""
    x, y = data.batch(0)
    device, example = x.device, (x[:2].cpu(), y[:2].cpu())
    torch.manual_seed(tree.seed)
    host = tree.make().to(device)
    cost = flops_per_step(tree.make(), example)
    total = tree.steps * flops_per_step((tree.unit or tree.make)(), example) / cost
    ratios = [flops_per_step(arm.make(), example) / cost for arm in tree.arms]
    spans = {
        span
        for arm, ratio in zip(tree.arms, ratios, strict=True)
        for window in WINDOWS
        for span in (_span(arm.at, window, 1), _span(arm.at, window, ratio))
    }
    shares = sorted({arm.at for arm in tree.arms})
    run = Path(tree, data, Training(host), total)
    run.follow(spans, shares)
    end = _end(run.training, data)
    arms = []
    for arm, ratio in zip(tree.arms, ratios, strict=True):
        step, start = run.kept[arm.at]
        grown = start.grown(arm.make, tree.seed + 99, arm.ramp)
        path = Path(tree, data, grown, total, at=arm.at + arm.lost, ratio=ratio, first=step)
        path.follow([_span(arm.at, window, 1) for window in WINDOWS] if not arm.lost else [])
        leads = {str(window): _leads(path, run, arm.at, window, ratio) for window in WINDOWS}
        lag = None if arm.lost else lags(run.losses[step:], path.losses, round(0.1 * total))
        told = {"arm": arm.name, "at": arm.at, "ramp": arm.ramp, "lost": arm.lost, "ratio": ratio, "lag": lag}
        found = {name: lead for name, lead in leads.items() if lead}
        arms.append(told | {"parameters": _count(grown.model), "leads": found} | _end(grown, data))
    told = {"host": tree.host, "seed": tree.seed, "lr": tree.lr, "steps": tree.steps, "parameters": _count(host)}
    return told | {"targets_per_parameter": round(tree.steps * y.numel() / _count(host), 1), "arms": arms} | end


class Path:
    """Training from a share of the FLOPs to the end.

    Args:
        tree: whose it is.
        data: to learn from.
        training: that goes on.
        total: steps of the host in the whole run.
        at: share of the FLOPs that is spent already.
        ratio: FLOPs of a step over those of the host's.
        first: step of the data with which it begins.

    Attributes:
        kept: step and training at the shares that were asked for.
        means: losses of held-out samples by the mean weights of the spans that were asked for.
    """

    def __init__(
        self,
        tree: Tree,
        data: Data,
        training: Training,
        total: float,
        at: float = 0.0,
        ratio: float = 1.0,
        first: int = 0,
    ) -> None:
        self.training, self.kept = training, dict[float, tuple[int, Training]]()
        self.means = dict[tuple[float, float], Tensor]()
        self._tree, self._data, self._total, self._at, self._ratio = tree, data, total, at, ratio
        self._first = first

    @property
    def losses(self) -> Tensor:
        """Training losses, step by step."""
        return torch.stack(self.training.losses).cpu()

    def follow(self, spans: Collection[tuple[float, float]], shares: Sequence[float] = ()) -> None:
        """Train to the end.

        Args:
            spans: shares of the FLOPs between which the mean weights are judged.
            shares: at which the training is kept.
        """
        keep = {self._step(share): share for share in shares}
        ends = {span: (self._step(span[0]), max(self._step(span[1]), self._step(span[0]) + 1)) for span in spans}
        begins, last = {begin for begin, _ in ends.values()}, self._step(1.0)
        starts = dict[int, list[Tensor]]()
        for step in range(last + 1):
            if step in begins:
                starts[step] = self.training.sums()
            for span, (begin, end) in ends.items():
                if step == end:
                    model = self.training.averaged(starts[begin], end - begin)
                    self.means[span] = judged(model, self._data.held_out)[0]
            if step in keep:
                self.kept[keep[step]] = (step, self.training.copy())
            if step < last:
                self.training.step(*self._data.batch(self._first + step), self._rate(step))

    def _step(self, share: float) -> int:
        return max(0, round((share - self._at) * self._total / self._ratio))

    def _rate(self, step: int) -> float:
        share = min(1.0, self._at + step * self._ratio / self._total)
        warm = 1.0 if self._first or not self._tree.warmup else min(1.0, (step + 1) / self._tree.warmup)
        return self._tree.lr * warm * SCHEDULES[self._tree.schedule](share)


def lags(run: Tensor, arm: Tensor, steps: int) -> float | None:
    """By how much the training loss of an arm lay above the run's at the same steps, at most, relative to it.

    Both curves are means over twentieths of a window, compared over five of them, from 40 % of the window on.

    Args:
        run, arm: training losses from the birth of the arm on.
        steps: of the window.
    """
    size = max(1, steps // CURVE_POINTS)
    points = min(CURVE_POINTS, len(run) // size, len(arm) // size)
    curves = [losses[: points * size].view(points, size).mean(1) for losses in (run, arm)]
    ends = range(round(LAG_FROM * CURVE_POINTS), points + 1)
    means = [[curve[end - LAG_POINTS : end].mean().item() for end in ends] for curve in curves]
    return max((ours / theirs - 1 for theirs, ours in zip(*means, strict=True)), default=None)


def lead(arm: Tensor, run: Tensor) -> dict[str, float]:
    """Mean loss of an arm minus the run's on the same samples, relative to the run's, and over its standard error."""
    difference = (arm - run).double()
    error = difference.std().item() / len(difference) ** 0.5
    relative = difference.mean().item() / max(run.double().mean().item(), 1e-12)
    return {"relative": round(relative, 5), "z": round(difference.mean().item() / max(error, 1e-12), 2)}


def _leads(path: Path, run: Path, at: float, window: float, ratio: float) -> dict[str, dict[str, float]]:
    arm = path.means.get(_span(at, window, 1))
    spans = {"flops": _span(at, window, 1), "steps": _span(at, window, ratio)}
    return {} if arm is None else {name: lead(arm, run.means[span]) for name, span in spans.items()}


def _span(at: float, window: float, ratio: float) -> tuple[float, float]:
    return at + 0.75 * window / ratio, at + window / ratio


def _end(training: Training, data: Data) -> dict[str, float]:
    losses, accuracy = judged(training.model, data.test)
    return {"loss": round(losses.mean().item(), 5), "accuracy": round(accuracy, 5)}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
