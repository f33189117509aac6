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
from typing import Any

from benchmarks.growth.cases import ALL_ROWS, Case, cases
from benchmarks.growth.cells import CONTROL_ROWS, GROWN_ROWS, run_rows
from benchmarks.growth.tables import compare, kept_trials, machines, markdown

RESULTS = Path(__file__).parent.parent / "results" / "growth"
TRIALS = ("placebo", "random_frozen")


def main() -> None:
    """Compute what is missing, print the tables, write ``results.json``."""
    options = _parser().parse_args()
    if options.fresh:
        shutil.rmtree(options.output / "cells", ignore_errors=True)
    if options.text is None:
        print("text-gpt is left out: name a text to learn from, --text PATH.")
    chosen = [case for case in cases(options.text) if options.cases is None or case.name in options.cases]
    trials = range(options.trials if chosen and chosen[0].name == "digits" else 0)
    seeds = {case.name: range(options.seeds or case.seeds) for case in chosen}
    jobs = [(case, case.rows, seed) for case in reversed(chosen) for seed in seeds[case.name]]  # the longest first
    jobs += [(chosen[0], (row,), seed) for row in TRIALS for seed in trials]
    _compute(options.output, jobs, options.workers)

    results: dict[str, Any] = {
        "machines": machines(options.output),
        "settings": {case.name: {"host": case.host, **case.pace._asdict()} for case in chosen},
        "tasks": {},
    }
    for case in chosen:
        table = compare(options.output, case.name, case.rows, seeds[case.name])
        results["tasks"][case.name] = table
        print(f"\n{markdown(case.name, table)}")
    results["trials"] = {row: kept_trials(options.output, "digits", row, trials) for row in TRIALS}
    for row, counts in results["trials"].items():
        print(f"\n{row}: kept in {counts['kept']} of {counts['trials']} trials on digits")
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{results['machines']}\nWritten to {options.output / 'results.json'}")


def _compute(directory: Path, jobs: list[tuple[Case, tuple[str, ...], int]], workers: int) -> None:
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
    parser.add_argument("--cases", nargs="+", help="names of the tables to compute; left out: all")
    parser.add_argument("--text", type=Path, help="a text to learn from, for the table text-gpt")
    parser.add_argument("--seeds", type=int, help="paired seeds of every row; left out: 10 for perceptrons, else 5")
    parser.add_argument("--trials", type=int, default=100, help="trials of each control blueprint on digits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where cells and results are kept")
    parser.add_argument("--fresh", action="store_true", help="forget cells that are finished")
    return parser


assert set(ALL_ROWS) <= {*GROWN_ROWS, *CONTROL_ROWS}

if __name__ == "__main__":
    main()
