"""``python -m benchmarks.growth.regret``: does the round choose the right candidate?

For every seed the run with the round's choice (one round, all else as shipped) stands against the same run with a
single candidate: offered alone, at the same time, with the same blueprint and size, and adopted if it passes the same
gates. The best single candidate of a seed is the one whose mean test loss over all *other* seeds is best, so that it is
fixed before the seed is looked at. Regret is by how much the test loss of the round's choice is above that of this
candidate.

Candidates are the places that the round offered in any of the seeds, at most six: those that were offered most often.
A finished run is a line of a file, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.growth.regret_run import Job, run_one
from benchmarks.growth.trials_jobs import Result, add_options, changes, compute, finished, machines, parsed, publish
from benchmarks.growth.trials_list import TASKS, TEXT

RESULTS = Path(__file__).parent.parent / "results" / "growth"
FINISHED = "runs/regret"
FIRST_SEED, SEEDS = 4_000, 20
"""Others than those by which the choice was made (decision 23: from 2,000 on)."""
MOST_PLACES = 6

Losses = Mapping[int, float]
"""Test loss by seed."""


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing, print the table, write ``regret.json``."""
    parser = _parser()
    options = parsed(parser, arguments)
    if options.seeds < 3:
        parser.error("Give --seeds at least 3: a candidate that is fixed from other seeds needs two others.")
    tasks = [name for name, field in TASKS.items() if name in options.tasks]
    if options.text is None and not options.tables:
        print("Tasks on a text are left out: name one to learn from, --text PATH.")
        tasks = [name for name in tasks if TASKS[name].data != TEXT]
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    folder = options.output / FINISHED
    file = folder / f"{'-'.join(tasks)}.jsonl"

    def jobs(task: str, place: str | None) -> list[Job]:
        return [Job(task, seed, place, options.text, *changes(options)) for seed in seeds]

    def run(wanted: Sequence[Job]) -> list[str]:
        return [] if options.tables else compute(run_one, {one.key: one for one in wanted}, file, options.workers)

    failures = run([one for task in tasks for one in jobs(task, None)])
    done = finished(folder)
    offered = {task: candidates([done[one.key] for one in jobs(task, None) if one.key in done]) for task in tasks}
    failures += run([one for task in tasks for place in offered[task] for one in jobs(task, place)])

    done = finished(folder)
    rows = []
    for task in tasks:
        chosen = {one.seed: done[one.key] for one in jobs(task, None) if one.key in done}
        single = {
            place: {one.seed: done[one.key] for one in jobs(task, place) if one.key in done} for place in offered[task]
        }
        complete = [seed for seed in chosen if all(seed in runs for runs in single.values())]
        if len(complete) > 2 and single:
            rows.append(_row(task, complete, chosen, single))
        else:
            print(f"{task}: nothing to compare; {len(chosen)} rounds are finished and offered {len(single)} places.")
    print(f"\n{markdown(rows)}")
    content = {"machines": machines(done), "tasks": rows}
    publish(options.output / "regret.json", json.dumps(content, indent=1) + "\n", done)
    return 1 if failures else 0


def candidates(rounds: Sequence[Result]) -> list[str]:
    """The places that rounds offered, those of most seeds first."""
    counts = Counter(place for one in rounds for place in one["offered"])
    return [place for place, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_PLACES]]


def best_of_others(single: Mapping[str, Losses], seed: int) -> str:
    """The place with the least mean test loss over all seeds but this one."""
    return min(single, key=lambda place: fmean(loss for other, loss in single[place].items() if other != seed))


def regrets(chosen: Losses, single: Mapping[str, Losses]) -> dict[int, float]:
    """Test loss of the round's choice minus that of the best single candidate, fixed from other seeds, by seed."""
    return {seed: loss - single[best_of_others(single, seed)][seed] for seed, loss in chosen.items()}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as the documents show it."""
    lines = [
        "| task | seeds | test loss: the round's choice | candidate | alone: mean test loss | alone: kept | "
        "chosen by the round | regret | standard error | at most one standard error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for index, (place, one) in enumerate(row["single"].items()):
            head = f"{row['task']} | {row['seeds']} | {row['loss']:.4f}" if index == 0 else " | | "
            verdict = "met" if row["is_met"] else "missed"
            tail = f"{row['regret']:+.4f} | {row['standard_error']:.4f} | {verdict}" if index == 0 else " | | "
            name = f"`{place}`" if place else "the whole model"
            lines.append(f"| {head} | {name} | {one['loss']:.4f} | {one['kept']} | {one['chosen']} | {tail} |")
    return "\n".join(lines)


def _row(
    task: str, seeds: Sequence[int], chosen: Mapping[int, Result], single: Mapping[str, Mapping[int, Result]]
) -> dict[str, Any]:
    losses = {seed: chosen[seed]["test_loss"] for seed in seeds}
    alone = {place: {seed: runs[seed]["test_loss"] for seed in seeds} for place, runs in single.items()}
    found = regrets(losses, alone)
    error = stdev(found.values()) / len(found) ** 0.5
    return {
        "task": task,
        "seeds": len(seeds),
        "loss": fmean(losses.values()),
        "regret": fmean(found.values()),
        "standard_error": error,
        "is_met": fmean(found.values()) <= error,
        "refused": sum(chosen[seed]["adopted"] is None for seed in seeds),
        "single": {
            place: {
                "loss": fmean(alone[place].values()),
                "kept": sum(runs[seed]["is_kept"] for seed in seeds),
                "chosen": sum(chosen[seed]["adopted"] == place for seed in seeds),
                "by_seed": alone[place],
            }
            for place, runs in single.items()
        },
        "by_seed": {
            seed: {"loss": losses[seed], "adopted": chosen[seed]["adopted"], "regret": found[seed]} for seed in seeds
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.growth.regret",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, help="a text to learn from, for tasks on text")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds from {FIRST_SEED} on")
    add_options(parser, RESULTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
