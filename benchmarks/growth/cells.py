"""One cell of the tables: one row of one task from one seed. Finished cells are files, so a run can be resumed."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.growth.cases import Case
from benchmarks.machine import machine
from esper.contracts.config import GrowthConfig
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.growing import SCHEDULE, growing
from esper.evaluation.row import measured
from esper.evaluation.widening import widened
from esper.kasmina.export import export
from esper.tasks.catalogue import load_task

WIDENING_BIRTH = 0.2  # share of the steps at which a first graft is adopted, if one is
GROWN_ROWS = {"grown": GrowthConfig().blueprints, "placebo": ("placebo",), "random_frozen": ("random_frozen",)}
CONTROL_ROWS = ("host_on", "static", "widened")


def run_rows(directory: Path, case: Case, rows: tuple[str, ...], seed: int) -> None:
    """Compute all rows of one case and seed that are still missing; controls follow the grown run's FLOPs and size."""
    torch.set_num_threads(1)
    for row in rows:
        path = cell_path(directory, case.name, row, seed)
        if path.exists():
            continue
        if row in GROWN_ROWS:
            cell = _grown(case, GROWN_ROWS[row], seed)
        else:
            grown = json.loads(cell_path(directory, case.name, "grown", seed).read_text())
            cell = _control(case, row, grown, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({"machine": machine(), **cell}, indent=1))
        unfinished.rename(path)


def cell_path(directory: Path, case: str, row: str, seed: int) -> Path:
    """Where a cell is kept."""
    return directory / "cells" / case / row / f"{seed:03d}.json"


def _grown(case: Case, blueprints: Sequence[str], seed: int) -> dict[str, Any]:
    task, pace = load_task(case.data, seed, case.host), case.pace
    started = time.perf_counter()
    config = replace(GrowthConfig(seed=seed), blueprints=blueprints)
    run = growing(task, config, **pace._asdict(), seed=seed)
    run.finish()
    seconds = time.perf_counter() - started
    reports = [report.to_dict() for report in run.session.field_reports]
    kept = sum(report["outcome"] == "FOSSILIZED" for report in reports)
    cell: dict[str, Any] = {"kept": kept, "lifecycles": reports, "probe_flops": run.session.probe_flops}
    if blueprints == GROWN_ROWS["grown"] or not kept:  # a control that was kept cannot be exported
        flops = run.session.train_flops
        row = measured(export(run.model), task, seed, train_flops=flops, seconds=seconds, lr=pace.lr, schedule=SCHEDULE)
        cell |= row.to_dict()
    return cell


def _control(case: Case, row: str, grown: dict[str, Any], seed: int) -> dict[str, Any]:
    task, pace = load_task(case.data, seed, case.host), case.pace
    setting = Setting(batch_size=pace.batch_size, seed=seed, split_seed=seed)
    flops, parameters = grown["train_flops"], grown["parameters"]
    if row == "host_on":
        return host_on(task, flops, setting).to_dict()
    if row == "static":
        return static(task, flops, parameters, setting).to_dict()
    birth = round(WIDENING_BIRTH * pace.epochs * (len(task.train.y) // pace.batch_size))
    return widened(task, flops, parameters, birth, setting).to_dict()
