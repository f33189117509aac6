"""``python -m benchmarks.growth.settings``: how the shipped defaults compare with their neighbours.

Settings are chosen by these figures, so they are of the *select* part of the held-out samples and of seeds from 100 on:
test samples and the seeds of the tables stay fresh. A round chooses among its arms by that part too, so a change of how
many there are looks a little better than it is.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.growth.cases import Case, cases
from benchmarks.growth.claims import interval
from benchmarks.machine import machine
from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.evaluation.row import measured
from esper.kasmina.host.export import export
from esper.tasks.catalogue import load_task

FIRST_SEED = 100
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"compare": "flops"},
    {"compare": "steps"},
    {"graft_lr": 0.5},
    {"graft_lr": 1.0},
    {"graft_lr": 1.5},
    {"graft_lr": 2.0},
    {"capacity_per_round": 0.5},
    {"capacity_per_round": 0.7},
    {"round_fraction": 0.15},
    {"grow_at": 0.15},
    {"max_candidates": 3},
    {"choice": "best"},
    {"ramp_fraction": 0.008},
    {"blueprints": ("bottleneck_mlp",)},
)


def run(job: tuple[Case, dict[str, Any], int]) -> dict[str, float]:
    """One run with one change of the defaults."""
    case, change, seed = job
    torch.set_num_threads(1)
    task, pace = load_task(case.data, seed, case.host), case.pace
    config = GrowthConfig(**{"seed": seed} | change)
    grown = growing(task, config, **pace._asdict(), seed=seed)
    grown.finish()
    flops = grown.session.train_flops
    row = measured(export(grown.model), task, seed, train_flops=flops, seconds=0.0, lr=pace.lr, schedule=pace.schedule)
    has_grown = any(report.outcome == "FOSSILIZED" for report in grown.session.field_reports)
    return {
        "accuracy": 100 * row.val_metric,
        "loss": row.val_loss,
        "mega_flops": flops / 1e6,
        "grew": float(has_grown),
    }


def main() -> None:
    """Run every change on every task and seed; print and store means with 95 % bootstrap intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24, help=f"seeds from {FIRST_SEED} on")
    parser.add_argument("--cases", nargs="+", default=["digits", "mnist1d"], help="names of tables")
    parser.add_argument(
        "--changes", nargs="+", help="only of these settings, beside no change at all; left out: of all"
    )
    parser.add_argument("--text", type=Path, help="a text to learn from, for the tables text-mlp and text-gpt")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/growth/settings.json"))
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    chosen = [case for case in cases(options.text) if case.name in options.cases]
    if options.changes is not None and options.output == parser.get_default("output"):
        parser.error("A part would replace the whole table. Give --changes together with an --output of its own.")
    known = {name for change in CHANGES for name in change}
    if unknown := set(options.changes or ()) - known:
        parser.error(f"no change of {', '.join(sorted(unknown))} is compared; there are {', '.join(sorted(known))}")
    changes = [one for one in CHANGES if options.changes is None or set(one) <= set(options.changes)]
    jobs = [(case, change, seed) for case in chosen for change in changes for seed in seeds]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(run, jobs))
    rows = []
    for start in range(0, len(jobs), len(seeds)):
        case, change, _ = jobs[start]
        cells = found[start : start + len(seeds)]
        means = {name: interval([cell[name] for cell in cells]) for name in cells[0]}
        rows.append({"task": case.name, "change": change, "seeds": len(seeds), **means})
        shown = "  ".join(f"{name} {mean:.4g} [{low:.4g}, {high:.4g}]" for name, (mean, low, high) in means.items())
        print(f"{case.name:8}  {json.dumps(change):32}  {shown}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
