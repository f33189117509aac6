"""``python -m benchmarks.growth``: the tables of growth against its controls.

Every cell is a file, so an interrupted benchmark goes on where it stopped; ``--fresh`` starts over.
"""

import argparse
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.growth.cells import BATCH_SIZE, CONTROL_ROWS, EPOCHS, GROWN_ROWS, LR, run_rows
from benchmarks.growth.tables import compare, kept_trials, machines, markdown

RESULTS = Path(__file__).parent.parent / "results" / "growth"
ROWS = ("grown", *CONTROL_ROWS, "placebo")
TASKS = ("digits", "mnist1d")
TRIALS = ("placebo", "random_frozen")


def main() -> None:
    """Compute what is missing, print the tables, write ``results.json``."""
    options = _parser().parse_args()
    if options.fresh:
        shutil.rmtree(options.output / "cells", ignore_errors=True)
    seeds, trials = range(options.seeds), range(options.trials)
    jobs = [(data, ROWS, seed) for data in TASKS for seed in seeds]
    jobs += [("digits", (row,), seed) for row in TRIALS for seed in trials]
    _compute(options.output, jobs, options.workers)

    results = {
        "machines": machines(options.output),
        "setting": {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "lr": LR},
        "tasks": {},
    }
    for data in TASKS:
        table = compare(options.output, data, ROWS, seeds)
        results["tasks"][data] = table
        print(f"\n{markdown(data, table)}")
    results["trials"] = {row: kept_trials(options.output, "digits", row, trials) for row in TRIALS}
    for row, counts in results["trials"].items():
        print(f"\n{row}: kept in {counts['kept']} of {counts['trials']} trials on digits")
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{results['machines']}\nWritten to {options.output / 'results.json'}")


def _compute(directory: Path, jobs: list[tuple[str, tuple[str, ...], int]], workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(run_rows, directory, *job) for job in jobs]
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if done % 10 == 0 or done == len(jobs):
                print(f"{done} of {len(jobs)} jobs", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.growth", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="paired seeds of every row")
    parser.add_argument("--trials", type=int, default=100, help="trials of each control blueprint on digits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where cells and results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget cells that are finished")
    return parser


assert set(ROWS) <= {*GROWN_ROWS, *CONTROL_ROWS}

if __name__ == "__main__":
    main()
