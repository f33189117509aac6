"""Rows that grow by themselves: the grown run, and what it would be with another judge, place, blueprint or host."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.growth.cases import Case
from benchmarks.growth.cells import Job, write_whole
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.evaluation.controls import train_new
from esper.evaluation.growing import growing
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.row import measured
from esper.evaluation.training import batches, flops_per_step
from esper.evaluation.ungated import always_yes
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import host_parameters
from esper.runtime.session import Session
from esper.tamiyo.controls import RandomPolicy
from esper.tasks.task import HostFactory, Task


def grown(job: Job) -> dict[str, Any]:
    """The shipped configuration."""
    return _grow(job, job.load_task())


def placebo(job: Job) -> dict[str, Any]:
    """Only grafts that read another sample's input."""
    return _grow(job, job.load_task(), blueprints=("placebo",))


def random_frozen(job: Job) -> dict[str, Any]:
    """Only random grafts that never train."""
    return _grow(job, job.load_task(), blueprints=("random_frozen",))


def random_place(job: Job) -> dict[str, Any]:
    """One random blueprint a round, at a random place and time within the same budgets, judged by the same gates."""
    changes = {"max_candidates": 1}
    return _grow(job, job.load_task(), policy=RandomPolicy(_config(job, changes)), **changes)


def ungated(job: Job) -> dict[str, Any]:
    """The first candidate of every round is adopted whether or not it beats the twin, and kept without looks."""
    task = job.load_task()
    return _grow(job, task, evaluate=always_yes(task, job.seed))


def wide_grown(job: Job) -> dict[str, Any]:
    """A host so wide that growth should be refused."""
    return _grow(job, wide_task(job))


def sunk_grown(job: Job) -> dict[str, Any]:
    """A host that was trained for a whole run before."""
    return _grow(job, job.load_task(), weights=trained_host(job))


@dataclass(frozen=True)
class Wide:
    """A factory of hosts that are ``factor`` times as wide."""

    make_host: HostFactory
    factor: float

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        return self.make_host(width_factor=self.factor * width_factor)


def wide_task(job: Job) -> Task:
    """The case with its wide host."""
    task = job.load_task()
    return replace(task, make_host=Wide(task.make_host, job.case.wide))


def trained_host_path(directory: Path, case: Case, seed: int) -> Path:
    """Where the weights of a trained host are kept."""
    return directory / "cells" / (case.before or case).key / "trained_host" / f"{seed:03d}.safetensors"


def trained_host(job: Job) -> dict[str, Tensor]:
    """Weights of the host after a whole run by the case's recipe for it; trained once for each seed."""
    path, case = trained_host_path(job.directory, job.case, job.seed), job.case.before or job.case
    if not path.exists():
        task, pace, setting = case.load_task(job.seed), case.pace, replace(job, case=case).setting
        steps = pace.epochs * (pace.steps_per_epoch or max(1, len(task.train.y) // pace.batch_size))
        flops = steps * flops_per_step(task.make_host(), next(batches(task, pace.batch_size, job.seed)))
        torch.manual_seed(job.seed)
        host, _ = train_new(task, 1.0, flops, setting, case.trained, LearningCurve(task, job.seed))
        write_whole(path, lambda unfinished: save_file(host.state_dict(), unfinished))
    return load_file(path)


def _config(job: Job, changes: Mapping[str, Any]) -> GrowthConfig:
    """How a run of a case may grow."""
    return GrowthConfig(**{"seed": job.seed} | dict(job.case.growth) | dict(changes))


def _grow(
    job: Job, task: Task, *, policy: Any = None, evaluate: Any = None, weights: Any = None, **changes: Any
) -> Any:
    pace = job.case.pace
    started = time.perf_counter()
    run = growing(
        task,
        _config(job, changes),
        epochs=pace.epochs,
        batch_size=pace.batch_size,
        steps_per_epoch=pace.steps_per_epoch,
        lr=job.recipe.lr,
        schedule=job.recipe.schedule,
        seed=job.seed,
        policy=policy,
        evaluate=evaluate,
        weights=weights,
    )
    run.finish()
    session = run.session
    row = measured(
        run.model,
        task,
        job.seed,
        train_flops=session.train_flops,
        seconds=time.perf_counter() - started,
        lr=job.recipe.lr,
        schedule=job.recipe.schedule,
        curve=_curve(session),
    )
    reports = [report.to_dict() for report in session.field_reports]
    return row.to_dict() | {
        "parameters": host_parameters(run.model) + sum(place.arena.num_parameters for place in places(run.model)),
        "steps": session.step_count,
        "kept": sum(report["outcome"] == State.FOSSILIZED.name for report in reports),
        "lifecycles": reports,
        "probe_flops": session.probe_flops,
    }


def _curve(session: Session) -> dict[str, list[Any]]:
    """The run's own log in the shape of a control's learning curve; FLOPs with all arms and judging up to there."""
    epochs = [event for event in session.events if event["event"] == "epoch"]
    return {
        "steps": [event["step"] for event in epochs],
        "flops": [event["run_flops"] + event["arm_flops"] + event["judging_flops"] for event in epochs],
        "train_losses": [event["train_loss"] for event in epochs],
        "val_losses": [event["val_loss"] for event in epochs],
        "val_metrics": [event["val_metric"] for event in epochs],
    }
