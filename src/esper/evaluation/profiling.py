"""What Esper costs in a step: the bare host, the same with dormant seeds, and with a graft that is blended in.

Steps are timed without a profiler, the three kinds in turn, and profiled afterwards: a profiler slows small work down.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile, record_function

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError, TransitionError
from esper.evaluation.growing import Growing, growing
from esper.evaluation.ranges import NAMES, Cost, Span, costs, named
from esper.evaluation.scoring import mean_loss
from esper.evaluation.training import WEIGHT_DECAY
from esper.kasmina.host.anchoring import places
from esper.runtime.training.loader import BatchLoader
from esper.tamiyo.controls import NeverPolicy
from esper.tasks.task import Task

WARM_UP = 8
"""Steps before any is timed: the first is traced, and seeds look in one of eight."""

KINDS = ("bare", "dormant", "with a graft")


@dataclass(frozen=True)
class Profile:
    """What steps took.

    Attributes:
        device: on which.
        steps: of each kind.
        step_ms: median milliseconds of a step, by kind.
        processor_ms: mean milliseconds of all threads in a step, by kind: other work on the machine does not count.
        ranges: of the profiled steps what each range took in a step, by kind; none of the bare host.
        graft: where what grew, in words.
        trace: the file with the trace.
    """

    device: str
    steps: int
    step_ms: dict[str, float]
    processor_ms: dict[str, float]
    ranges: dict[str, list[Cost]]
    graft: str
    trace: Path


def profiled(
    task: Task,
    config: GrowthConfig,
    *,
    batch_size: int,
    lr: float,
    schedule: str,
    seed: int,
    epochs: int,
    steps_per_epoch: int | None,
    steps: int,
    trace: Path,
) -> Profile:
    """Time and profile steps of such a run; nothing of it is kept.

    Args:
        task: what is learned, on its device and in its precision.
        config: how it may grow; here it grows one graft, live.
        batch_size, lr, schedule, seed, epochs, steps_per_epoch: as of :func:`~esper.evaluation.growing.growing`.
        steps: of each kind that are timed, and again so many that are profiled.
        trace: file to write the Chrome trace to.

    Raises:
        ConfigError: if nothing fits any place, or the trace cannot be written.
    """
    config = replace(config, max_rounds=0, trial="live", max_train_flops=None)
    epochs = max(epochs, ceil(20 * (WARM_UP + steps) * batch_size / len(task.train.x)))
    settings: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "schedule": schedule, "seed": seed}
    settings |= {"epochs": epochs, "steps_per_epoch": steps_per_epoch, "policy": NeverPolicy(config)}
    with named():
        runs = [growing(task, config, **settings) for _ in range(2)]
        graft = _grow(runs[1], config, steps=WARM_UP)
        takers = [_bare(task, batch_size, lr, seed), *map(_stepping, runs)]
        for take in takers * WARM_UP:
            take()
        taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for _ in range(steps):
            for kind, take in zip(KINDS, takers, strict=True):
                taken[kind].append(_timed(take, task.device))
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (task.device.type == "cuda")]
        with profile(activities=activities) as profiler:
            for kind, take in list(zip(KINDS, takers, strict=True))[1:]:
                with record_function(f"phase: {kind}"):
                    for _ in range(steps):
                        take()
    trace.unlink(missing_ok=True)
    profiler.export_chrome_trace(str(trace))
    if not trace.is_file():  # torch only logs that
        raise ConfigError(f"The trace cannot be written to {trace}. Name another file, or make room.")
    return Profile(
        device=str(task.device),
        steps=steps,
        step_ms={kind: 1000 * median(wall for wall, _ in times) for kind, times in taken.items()},
        processor_ms={kind: 1000 * fmean(busy for _, busy in times) for kind, times in taken.items()},
        ranges=_ranges(profiler, steps),
        graft=graft,
        trace=trace,
    )


def _bare(task: Task, batch_size: int, lr: float, seed: int) -> Callable[[], None]:
    """Takes a step of the host without Esper."""
    torch.manual_seed(seed)
    host = task.make_host()
    optimizer = AdamW(host.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    batches = _forever(BatchLoader(task.train, batch_size, seed))

    def take() -> None:
        mean_loss(host, next(batches), task.precision).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return take


def _stepping(run: Growing) -> Callable[[], None]:
    batches = _forever(run.loader)

    def take() -> None:
        run.session.step(next(batches))

    return take


def _forever(loader: Any) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


def _timed(take: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds of a step by the clock and of the processor, with all that the device does for it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began, busy = time.perf_counter(), time.process_time()
    take()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, time.process_time() - busy


def _grow(run: Growing, config: GrowthConfig, steps: int) -> str:
    """Let one graft be blended in, at the largest place where one fits; where and what, in words.

    Raises:
        ConfigError: if none fits anywhere.
    """
    take = _stepping(run)
    for _ in range(steps):
        take()
    reasons = []
    for place in sorted(places(run.model), key=lambda one: -one.host_parameters):
        for blueprint in config.blueprints:
            try:
                run.session.germinate(place.layer_id, "all", blueprint)
            except (ConfigError, TransitionError) as error:
                reasons.append(str(error))
                continue
            run.session.after_epoch()  # begins what waits
            return f"{blueprint} on {place.layer_id or 'the whole model'}"
    raise ConfigError(f"No graft can grow: {reasons[0] if reasons else 'there are no places'}")


def _ranges(profiler: Any, steps: int) -> dict[str, list[Cost]]:
    """What ranges took in a step, by kind."""
    spans = [
        Span(one.name, one.thread, one.time_range.start, one.time_range.end, one.device_time_total)
        for one in profiler.events()
        if one.device_type == DeviceType.CPU  # a GPU's track repeats the ranges
        and (one.name in NAMES or one.name.startswith("phase: "))
    ]
    found = {}
    for phase in (one for one in spans if one.name.startswith("phase: ")):
        inside = [one for one in spans if one.name in NAMES and phase.start_us <= one.start_us < phase.end_us]
        per_step = [Cost(one.name, one.calls, one.own_us / steps, one.device_us / steps) for one in costs(inside)]
        found[phase.name.removeprefix("phase: ")] = per_step
    return found
