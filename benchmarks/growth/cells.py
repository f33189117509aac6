"""One cell of the tables: one row of one task from one seed. Finished cells are files, so a run can be resumed."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from esper.contracts.config import GrowthConfig
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.growing import SCHEDULE, growing
from esper.evaluation.row import measured
from esper.evaluation.widening import widened
from esper.kasmina.export import export
from esper.tasks.catalogue import load_task

EPOCHS, BATCH_SIZE, LR = 60, 32, 5e-3  # the defaults of ``esper run``
WIDENING_BIRTH = 0.2  # share of the steps at which a first graft is adopted, if one is
GROWN_ROWS = {"grown": ("bottleneck_mlp",), "placebo": ("placebo",), "random_frozen": ("random_frozen",)}
CONTROL_ROWS = ("host_on", "static", "widened")


def run_rows(directory: Path, data: str, rows: tuple[str, ...], seed: int) -> None:
    """Compute all rows of one task and seed that are still missing; controls follow the grown run's FLOPs and size."""
    torch.set_num_threads(1)
    for row in rows:
        path = cell_path(directory, data, row, seed)
        if path.exists():
            continue
        if row in GROWN_ROWS:
            cell = _grown(data, GROWN_ROWS[row], seed)
        else:
            grown = json.loads(cell_path(directory, data, "grown", seed).read_text())
            cell = _control(data, row, grown, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"machine": machine(), **cell}, indent=1))
        unfinished.rename(path)


def cell_path(directory: Path, data: str, row: str, seed: int) -> Path:
    """Where a cell is kept."""
    return directory / "cells" / Path(data).stem / row / f"{seed:03d}.json"


def _grown(data: str, blueprints: tuple[str, ...], seed: int) -> dict[str, Any]:
    task = load_task(data, seed)
    started = time.perf_counter()
    config = replace(GrowthConfig(seed=seed), blueprints=blueprints)
    run = growing(task, config, epochs=EPOCHS, batch_size=BATCH_SIZE, lr=LR, seed=seed)
    run.finish()
    seconds = time.perf_counter() - started
    reports = [report.to_dict() for report in run.session.field_reports]
    kept = sum(report["outcome"] == "FOSSILIZED" for report in reports)
    cell: dict[str, Any] = {"kept": kept, "lifecycles": reports, "probe_flops": run.session.probe_flops}
    if blueprints == GROWN_ROWS["grown"] or not kept:  # a control that was kept cannot be exported
        flops = run.session.train_flops
        row = measured(export(run.model), task, seed, train_flops=flops, seconds=seconds, lr=LR, schedule=SCHEDULE)
        cell |= row.to_dict()
    return cell


def _control(data: str, row: str, grown: dict[str, Any], seed: int) -> dict[str, Any]:
    task = load_task(data, seed)
    setting = Setting(batch_size=BATCH_SIZE, seed=seed, split_seed=seed)
    flops, parameters = grown["train_flops"], grown["parameters"]
    if row == "host_on":
        return host_on(task, flops, setting).to_dict()
    if row == "static":
        return static(task, flops, parameters, setting).to_dict()
    birth = round(WIDENING_BIRTH * EPOCHS * (len(task.train.y) // BATCH_SIZE))
    return widened(task, flops, parameters, birth, setting).to_dict()
