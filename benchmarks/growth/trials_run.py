"""One trial: a run that may grow, and its twin, the same run that never grows; both to the end.

Both train on the same batches for equally many steps, so the grown run spends more FLOPs: those of its arms and of what
it grew. On wide hosts a third run, the host trained on, never grows either and takes as many steps as the grown run's
FLOPs pay for; it shows what refusing has cost.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.growth.trials_list import CONTROLS, TASKS, Trial
from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import Growing, growing
from esper.evaluation.scoring import per_sample
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.export import export
from esper.tamiyo.controls import NeverPolicy
from esper.tasks.task import Samples, Task


class Job(NamedTuple):
    """A trial, the text it may need, and settings of its pace and of its growth that are not ``esper run``'s."""

    trial: Trial
    text: Path | None
    pace: dict[str, Any]
    growth: dict[str, Any]


def run_trial(job: Job) -> dict[str, Any]:
    """Run a trial to the end; plain values. Of a control blueprint only its fate is told, without a twin."""
    trial, text, changes, growth = job
    task, pace = trial.load(text), TASKS[trial.task].pace(text) | changes
    config = GrowthConfig(seed=trial.seed, **growth)
    if trial.blueprint != "default":
        control = CONTROLS[trial.blueprint]
        config = replace(config, blueprints=(control.blueprint,), **control.growth)
        grown, _ = _trained(task, config, trial.seed, pace, grows=True)
        return fate(grown)

    grown, seconds = _trained(task, config, trial.seed, pace, grows=True)
    result: dict[str, Any] = {**fate(grown), "grown": _measured(grown, task, seconds)}
    twin, seconds = _trained(task, config, trial.seed, pace, grows=False)
    result["twin"] = _measured(twin, task, seconds)
    result["is_twin"] = same_bytes(export(grown.model), export(twin.model))
    result["fossils"] = ablations(grown.model, task.test, result["kept"])
    if trial.is_wide:
        factor = result["grown"]["train_flops"] / result["twin"]["train_flops"]
        longer = pace | {"steps_per_epoch": round(factor * len(twin.loader))}
        on, seconds = _trained(task, config, trial.seed, longer, grows=False)
        result["host_on"] = _measured(on, task, seconds)
    return result


def fate(run: Growing) -> dict[str, Any]:
    """What became of all that was tried in a finished run.

    Returns:
        How many lifecycles have ``begun`` and ``ended``; how many were ``adopted`` by a round; the numbers of those
        that were ``kept``; and place, blueprint, outcome and reason of each that has ended.
    """
    session = run.session
    events, reports = session.events, session.field_reports
    germinated = [event for event in events if event["event"] == "transition" and event["target"] == "GERMINATED"]
    begun = {event["lifecycle"] for event in germinated}
    return {
        "begun": len(begun),
        "ended": len(begun & {report.lifecycle for report in reports}),
        "adopted": sum(event["event"] == "round_ended" and event["adopted"] is not None for event in events),
        "kept": [report.lifecycle for report in reports if report.outcome == "FOSSILIZED"],
        "lifecycles": [[one.layer_id, one.blueprint, one.outcome, one.reason] for one in reports],
    }


def ablations(model: nn.Module, test: Samples, lifecycles: list[int]) -> list[dict[str, float]]:
    """Test loss and accuracy of a grown model without each of its fossils in turn.

    Args:
        model: the wrapped model, left as it is.
        test: samples that no decision has seen.
        lifecycles: whose fossils are taken out, one at a time.
    """
    found = []
    for number in lifecycles:
        with _silenced(model, number):
            losses, correct = per_sample(model, test)
        found.append({"loss_without": _mean(losses), "accuracy_without": _mean(correct)})
    return found


def same_bytes(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the same tensors under the same names."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _trained(
    task: Task, config: GrowthConfig, seed: int, pace: dict[str, Any], *, grows: bool
) -> tuple[Growing, float]:
    """A run to its end, and the seconds it took."""
    started = time.perf_counter()
    run = growing(task, config, **pace, seed=seed, policy=None if grows else NeverPolicy(config))
    run.finish()
    return run, time.perf_counter() - started


def _measured(run: Growing, task: Task, seconds: float) -> dict[str, float | None]:
    plain, session = export(run.model), run.session
    losses, correct = per_sample(plain, task.test)
    loss = _mean(losses)
    return {
        "test_loss": loss if math.isfinite(loss) else None,
        "test_accuracy": _mean(correct),
        "parameters": sum(parameter.numel() for parameter in plain.parameters()),
        "train_flops": session.train_flops,
        "probe_flops": session.probe_flops,
        "steps": session.step_count,
        "seconds": round(seconds, 1),
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@contextmanager
def _silenced(model: nn.Module, lifecycle: int) -> Iterator[None]:
    """A fossil adds nothing meanwhile: all of its parameters are 0."""
    arenas = [place.arena for place in places(model)]
    rows = [
        arena.fossil_bytes(index)[row]
        for arena in arenas
        for index, group in enumerate(arena.fossils)
        for row, graft in enumerate(group)
        if graft.lifecycle == lifecycle
    ]
    kept = [row.clone() for row in rows]
    for row in rows:
        row.zero_()
    try:
        yield
    finally:
        for row, value in zip(rows, kept, strict=True):
            row.copy_(value)
