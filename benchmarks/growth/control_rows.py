"""Rows that follow a grown run of the same seed: its FLOPs, its size, its grafts or its steps."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.growth.cells import Job
from benchmarks.growth.growing_rows import trained_host, wide_task
from benchmarks.growth.peers import PEERS, Goal
from esper.contracts.lifecycle import State
from esper.evaluation import controls
from esper.evaluation.adapters import adapters as adapters_row
from esper.evaluation.controls import width_factor
from esper.evaluation.planted import Planting
from esper.evaluation.planted import planted as planted_row
from esper.evaluation.row import Row
from esper.evaluation.training import batches, flops_per_step
from esper.evaluation.widening import widened as widened_row
from esper.tasks.task import HostFactory, Task, deeper
from esper.tasks.weights import Weights, put_weights

CEILING = 2
"""Times the grown run's FLOPs that ``static_ceiling`` gets."""

BIRTH_SHARE = 0.2
"""Of a run's FLOPs, before a peer grows, where the grown run did not grow."""


def host_on(job: Job) -> dict[str, Any]:
    """The host, equal FLOPs."""
    return controls.host_on(job.load_task(), job.grown()["train_flops"], job.setting).to_dict()


def host_on_epochs(job: Job) -> dict[str, Any]:
    """The host, equal epochs."""
    task = job.load_task()
    return controls.host_on(task, _epochs(job, task, 1.0), job.setting).to_dict()


def static(job: Job) -> dict[str, Any]:
    """A network of equal size, equal FLOPs."""
    return _static(job, job.load_task(), job.grown()["train_flops"]).to_dict()


def static_epochs(job: Job) -> dict[str, Any]:
    """A network of equal size, equal epochs."""
    task = job.load_task()
    factor = width_factor(task, job.grown()["parameters"])
    return _static(job, task, _epochs(job, task, factor)).to_dict()


def static_ceiling(job: Job) -> dict[str, Any]:
    """A network of equal size, twice the FLOPs."""
    return _static(job, job.load_task(), CEILING * job.grown()["train_flops"]).to_dict()


def static_shape(job: Job) -> dict[str, Any]:
    """A deeper network of equal parameters, equal FLOPs."""
    return _static(job, deeper(job.load_task()), job.grown()["train_flops"]).to_dict()


def widened(job: Job) -> dict[str, Any]:
    """The host, made wider where the grown run's first graft was born; equal size and FLOPs."""
    grown = job.grown()
    births = [report["born_step"] for report in _kept(grown)]
    row = widened_row(
        job.load_task(), grown["train_flops"], grown["parameters"], min(births, default=grown["steps"]), job.setting
    )
    return row.to_dict()


def planted(job: Job) -> dict[str, Any]:
    """The very grafts that the grown run kept, from the first step, without gates; equal FLOPs."""
    grown = job.grown()
    grafts = [Planting.of(report) for report in _kept(grown)]
    return planted_row(job.load_task(), grafts, grown["train_flops"], job.setting).to_dict()


def adapters(job: Job) -> dict[str, Any]:
    """Adapters behind every layer and block from the first step; equal size and FLOPs."""
    grown = job.grown()
    return adapters_row(job.load_task(), grown["train_flops"], grown["parameters"], job.setting).to_dict()


def wide_host_on(job: Job) -> dict[str, Any]:
    """The wide host, equal FLOPs."""
    return controls.host_on(wide_task(job), job.grown()["train_flops"], job.setting).to_dict()


def sunk_host_on(job: Job) -> dict[str, Any]:
    """The trained host, trained on for the same further FLOPs."""
    flops, weights = job.grown()["train_flops"], trained_host(job)
    return controls.host_on(job.load_task(), flops, job.setting, weights).to_dict()


def sunk_static(job: Job) -> dict[str, Any]:
    """A new network of the size to which the trained host grew, given the same further FLOPs."""
    return static(job)


def sunk_lora(job: Job) -> dict[str, Any]:
    """The trained host, frozen, with LoRA through peft; equal further FLOPs, as many parameters as growth added."""
    task = job.load_task()
    return _peer(job, "lora", replace(task, make_host=Trained(task.make_host, trained_host(job))), birth=0.0)


def peer(job: Job) -> dict[str, Any]:
    """A neighbour's way to grow, through its public interface; equal FLOPs, about equal size."""
    return _peer(job, job.row, job.load_task(), _share_before_birth(job.grown()))


@dataclass(frozen=True)
class Trained:
    """A :class:`~esper.tasks.task.HostFactory` of hosts that begin with trained weights."""

    make_host: HostFactory
    weights: Weights

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        host = self.make_host(width_factor=width_factor)
        put_weights(host, self.weights)
        return host


def _peer(job: Job, name: str, task: Task, birth: float) -> dict[str, Any]:
    """The row of a neighbour that grows after that share of the FLOPs."""
    grown, run = job.grown(), PEERS[name]
    goal = Goal(grown["train_flops"], grown["parameters"], birth)
    return controls.search(task, job.setting, lambda *how: run(task, goal, job.setting, *how)).to_dict()


def _share_before_birth(grown: dict[str, Any]) -> float:
    """Of the grown run's FLOPs, those that it had spent when its first graft was born."""
    births = [report["born_step"] for report in _kept(grown)]
    if not births:
        return BIRTH_SHARE
    curve = grown["curve"]
    spent = [0, *(flops for step, flops in zip(curve["steps"], curve["flops"], strict=True) if step <= min(births))]
    return float(spent[-1] / grown["train_flops"])


def _static(job: Job, task: Task, train_flops: int) -> Row:
    return controls.static(task, train_flops, job.grown()["parameters"], job.setting)


def _epochs(job: Job, task: Task, factor: float) -> int:
    """FLOPs of a host of that width over as many steps as the grown run made."""
    with torch.random.fork_rng(devices=[]):
        host = task.make_host(width_factor=factor)
    steps: int = job.grown()["steps"]
    return steps * flops_per_step(host, next(batches(task, job.case.pace.batch_size, job.seed)))


def _kept(grown: dict[str, Any]) -> list[dict[str, Any]]:
    return [report for report in grown["lifecycles"] if report["outcome"] == State.FOSSILIZED.name]
