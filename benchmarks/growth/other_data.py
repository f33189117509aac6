"""``python -m benchmarks.growth.other_data``: growth on data that its defaults were never tried on.

Every data set is written to a file and then handled as ``esper run`` handles it, by default settings alone: the grown
run, the host trained on and a static network of the grown one's size, both with equal FLOPs. They take the best of six
runs by their *select* part, and as ``_default`` rows one run of the grown run's own learning rate and schedule. A
finished seed is a line of a file, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth.other_data_sets import DATA_SETS, QUANTITIES, write
from benchmarks.growth.trials_jobs import Result, add_options, changes, compute, finished, machines, parsed, publish
from benchmarks.growth.trials_run import fate
from benchmarks.growth.trials_statistics import mean
from esper.cli.options import Options, Pace
from esper.contracts.config import GrowthConfig
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.growing import growing
from esper.evaluation.row import Row, measured
from esper.evaluation.training import Recipe
from esper.kasmina.host.export import export
from esper.tasks.catalogue import load_task

RESULTS = Path(__file__).parent.parent / "results" / "growth"
FINISHED, RESULT = "runs/other_data", "other_data.json"
FIRST_SEED, SEEDS = 3_000, 5
ROWS = ("grown", "host_on", "static", "host_on_default", "static_default")


class Job(NamedTuple):
    """A data set as ``esper run --data`` takes it, a seed, and settings that are not ``esper run``'s."""

    name: str
    data: str
    seed: int
    pace: dict[str, Any]
    growth: dict[str, Any]


def run_seed(job: Job) -> Result:
    """The grown run and its controls."""
    name, data, seed, shorter, growth = job
    options = Options(data=data, task="regression" if name in QUANTITIES else "auto")
    pace = {name: getattr(options, name) for name in Pace._fields} | shorter
    task = load_task(data, seed, task=options.task)
    started = time.perf_counter()
    run = growing(task, GrowthConfig(seed=seed, **growth), **pace, seed=seed)
    run.finish()
    seconds, flops = time.perf_counter() - started, run.session.train_flops
    grown = measured(
        export(run.model), task, seed, train_flops=flops, seconds=seconds, lr=pace["lr"], schedule=pace["schedule"]
    )
    searched = Setting(batch_size=pace["batch_size"], seed=seed, split_seed=seed)
    default = replace(searched, recipes=(Recipe(pace["lr"], pace["schedule"]),))
    rows = {
        "grown": grown,
        "host_on": host_on(task, flops, searched),
        "static": static(task, flops, grown.parameters, searched),
        "host_on_default": host_on(task, flops, default),
        "static_default": static(task, flops, grown.parameters, default),
    }
    samples = {name: len(getattr(task, name).y) for name in ("train", "held_out", "test")}
    return {
        "metric": task.metric,
        "samples": samples,
        **fate(run),
        "rows": {name: _plain(row) for name, row in rows.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing, print the table, write ``other_data.json``."""
    parser = _parser()
    options = parsed(parser, arguments)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    folder = options.output / FINISHED
    failures: list[str] = []
    if not options.tables:
        with tempfile.TemporaryDirectory() as written:
            data = {name: write(name, Path(written)) for name in options.data}
            jobs = {
                f"{name}/{seed}": Job(name, data[name], seed, *changes(options))
                for name in reversed(data)
                for seed in seeds
            }
            failures = compute(run_seed, jobs, folder / f"{'-'.join(options.data)}.jsonl", options.workers)

    done = _published(options.output / RESULT) | finished(folder)
    found = {name: {seed: done[f"{name}/{seed}"] for seed in seeds if f"{name}/{seed}" in done} for name in DATA_SETS}
    tables = {name: table(list(results.values())) for name, results in found.items() if results}
    print("\n" + markdown(tables))
    content = {"machines": machines(done), "data": tables, "by_seed": found}
    publish(options.output / RESULT, json.dumps(content, indent=1) + "\n", done)
    return 1 if failures else 0


def table(results: Sequence[Result]) -> dict[str, Any]:
    """One data set: every row's size, metric in percent and loss, and grown minus row, seed by seed."""
    rows = {}
    for name in ROWS:
        pairs = [(result["rows"]["grown"], result["rows"][name]) for result in results]
        rows[name] = {
            "parameters": mean([row["parameters"] for _, row in pairs]),
            "flops_relative": mean([row["train_flops"] / grown["train_flops"] for grown, row in pairs]),
            "metric": mean([100 * row["test_metric"] for _, row in pairs]),
            "loss": mean([_loss(row) for _, row in pairs]),
            "points_gained": mean([100 * (grown["test_metric"] - row["test_metric"]) for grown, row in pairs]),
            "loss_difference": mean([_loss(grown) - _loss(row) for grown, row in pairs]),
            "won_on_loss": sum(_loss(grown) < _loss(row) for grown, row in pairs),
        }
    grew = sum(bool(result["kept"]) for result in results)
    metric = results[0].get("metric", "accuracy")
    return {"metric": metric, "seeds": len(results), "samples": results[0]["samples"], "fossilised": grew, "rows": rows}


def markdown(tables: Mapping[str, dict[str, Any]]) -> str:
    """The tables of all data sets as one."""
    lines = [
        "| data (training samples) | row | parameters | FLOPs | test accuracy or R2, % | test loss | "
        "grown minus row: points | loss | won on loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for data, one in tables.items():
        for name, row in one["rows"].items():
            is_grown = name == "grown"
            told = "" if one["metric"] == "accuracy" else f", {one['metric']}"
            head = f"{data} ({one['samples']['train']:,}{told})" if is_grown else ""
            grew = f" (grew {one['fossilised']} of {one['seeds']})" if is_grown else ""
            gains = ("", "", "")
            if not is_grown:
                won = f"{row['won_on_loss']} of {one['seeds']}"
                gains = (_shown(row["points_gained"], "+.1f"), _shown(row["loss_difference"], "+.3f"), won)
            lines.append(
                f"| {head} | {name}{grew} | {row['parameters'][0]:,.0f} | {row['flops_relative'][0]:.2f} | "
                f"{_shown(row['metric'], '.1f')} | {_shown(row['loss'], '.3f')} | {' | '.join(gains)} |"
            )
    return "\n".join(lines)


def _published(path: Path) -> dict[str, Result]:
    """Results that were published before, by the keys of their jobs: of data that are not computed here."""
    if not path.exists():
        return {}
    by_seed = json.loads(path.read_text())["by_seed"]
    return {f"{name}/{seed}": result for name, results in by_seed.items() for seed, result in results.items()}


def _plain(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.to_dict().items() if name != "curve"}


def _loss(row: dict[str, Any]) -> float:
    """Test loss; one that is not finite is stored as null."""
    return math.nan if row["test_loss"] is None else float(row["test_loss"])


def _shown(value: tuple[float, float, float], spec: str) -> str:
    return f"{value[0]:{spec}} [{value[1]:{spec}}, {value[2]:{spec}}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.growth.other_data",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", nargs="+", choices=DATA_SETS, default=list(DATA_SETS), help="data sets to compute")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds from {FIRST_SEED} on")
    add_options(parser, RESULTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
