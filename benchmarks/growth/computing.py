"""Computes cells on all cores: one thread per process, and no cell's failure loses another one."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from benchmarks.growth.cells import Job, cells_of, fingerprint, write_cell
from benchmarks.growth.growing_rows import trained_host_path
from benchmarks.growth.plan import Plan
from benchmarks.growth.rows import ROWS


def compute(plan: Plan, workers: int) -> list[str]:
    """Compute all cells that are missing; gives the names of those that failed, which do not stop the others.

    If a process is killed, the cells of its phase that were not finished count as failed: call again.
    """
    failed: list[str] = []
    for phase in plan.phases():
        failed += _compute_phase([job for job in phase if not job.is_finished], workers)
    return failed


def _compute_phase(jobs: list[Job], workers: int) -> list[str]:
    if not jobs:
        return []
    failed: list[str] = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compute_cell, job): job for job in jobs}
        for done, future in enumerate(as_completed(futures), start=1):
            if (error := future.exception()) is not None:
                failed.append(futures[future].name)
                print(f"FAILED: {futures[future].name}: {error!r}", flush=True)
            if done % 10 == 0 or done == len(jobs):
                print(f"{time.strftime('%H:%M:%S')} {done} of {len(jobs)} cells of this phase", flush=True)
    return failed


def compute_cell(job: Job) -> None:
    """Compute one cell, on one thread."""
    torch.set_num_threads(1)
    write_cell(job.path, {"followed": fingerprint(job.followed), **ROWS[job.row].compute(job)})


def forget(plan: Plan) -> None:
    """Delete all cells of the plan's cases, rows and seeds, by whatever recipe, so that they are computed anew."""
    for case in plan.cases:
        for row in plan.rows_of(case):
            for seed in (*plan.tuning_seeds_of(case), *plan.seeds_of(row)):
                for path in cells_of(plan.directory, case, row, seed):
                    path.unlink()
                if row == "sunk_grown":
                    trained_host_path(plan.directory, case, seed).unlink(missing_ok=True)
