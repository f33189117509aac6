"""Computes cells on all cores: one thread per process, and no cell's failure loses another one."""

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

from benchmarks.growth.cells import Job, cells_of, fingerprint, write_cell
from benchmarks.growth.growing_rows import trained_host, trained_host_path
from benchmarks.growth.one_thread import on_one_thread
from benchmarks.growth.plan import Plan
from benchmarks.growth.rows import ROWS
from esper.evaluation.pool import each


def compute(plan: Plan, workers: int, seconds: float = math.inf) -> list[str]:
    """Compute all cells that are missing; gives the names of those that failed, which do not stop the others.

    Args:
        plan: which cells there shall be.
        workers: processes.
        seconds: after which no cell is begun; those that wait are neither computed nor failed.
    """
    failed: list[str] = []
    until = time.time() + seconds
    for phase in plan.phases():
        jobs = [job for job in phase if not job.is_finished]
        # Hosts that several rows begin with are trained before them, once. One that fails will fail its cells.
        hosts = {trained_host_path(job.directory, job.case, job.seed): job for job in jobs if _begins_trained(job)}
        _each(trained_host, [job for path, job in hosts.items() if not path.exists()], workers, until)
        failed += _each(compute_cell, jobs, workers, until)
    return failed


def _begins_trained(job: Job) -> bool:
    return ROWS[job.row].begins_trained


def _each(work: Callable[[Job], object], jobs: list[Job], workers: int, until: float) -> list[str]:
    """Names of the jobs that failed."""
    if not jobs or time.time() > until:
        return []
    failed: list[str] = []
    named = {job.name: job for job in jobs}
    with closing(each(partial(on_one_thread, partial(_in_time, work, until)), named, workers)) as hearing:
        for done, heard in enumerate(hearing, start=1):
            if heard.kind == "failed":
                failed.append(heard.key)
                print(f"FAILED: {heard.key}: {heard.value}", flush=True)
            if done % 10 == 0 or done == len(jobs):
                print(f"{time.strftime('%H:%M:%S')} {done} of {len(jobs)} cells of this phase", flush=True)
    return failed


def _in_time(work: Callable[[Job], object], until: float, job: Job) -> None:
    if time.time() <= until:
        work(job)


def compute_cell(job: Job) -> None:
    """Compute one cell."""
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
