"""``python -m benchmarks.growth.trials``: three hundred runs, each with its twin; what growth is worth, and how often.

The list of trials is published and fixed (``trials_list.json``). A finished trial is a line of a file, so that an
interrupted benchmark goes on where it stopped; parts may be computed on several machines, whose files are put into one
folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.growth.trials_jobs import add_options, changes, compute, finished, machines, parsed, publish
from benchmarks.growth.trials_list import CONTROLS, TASKS, TEXT, Trial, control_trials, listed, trials
from benchmarks.growth.trials_run import Job, run_trial
from benchmarks.growth.trials_table import by_task, markdown, summary

RESULTS = Path(__file__).parent.parent / "results" / "growth"
FINISHED = "runs/trials"
"""Folder of finished trials, below that of the results."""


def main(arguments: list[str] | None = None) -> int:
    """Compute what is missing, print the tables, write ``trials_list.json`` and ``trials.json``."""
    parser = _parser()
    options = parsed(parser, arguments)
    part, parts = options.part
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "trials_list.json").write_text(_compact(listed()))
    everything = [*trials(), *control_trials()]
    chosen = [
        one
        for one in everything
        if (options.limit is None or one.number < options.limit)
        and (options.tasks is None or one.task in options.tasks)
        and (options.blueprints is None or one.blueprint in options.blueprints)
    ]
    folder = options.output / FINISHED
    failures: list[str] = []
    if not options.tables:
        mine = [one for one in chosen if one.number % parts == part - 1]
        if options.text is None:
            print("Trials on a text are left out: name one to learn from, --text PATH.")
            mine = [one for one in mine if TASKS[one.task].data != TEXT]
        jobs = {one.key: Job(one, options.text, *changes(options)) for one in mine}
        failures = compute(run_trial, jobs, folder / f"part-{part}-of-{parts}.jsonl", options.workers)

    done = finished(folder)
    pairs = [(one, done[one.key]) for one in everything if one.key in done]
    results = [pair for pair in pairs if pair[0].blueprint == "default"]
    controls = [pair for pair in pairs if pair[0].blueprint != "default"]
    tables = {"summary": summary(results, controls), "by_task": by_task(results)}
    print(f"\n{len(pairs)} of {len(everything)} trials are finished.\n\n{markdown(*tables.values())}")
    published = {
        "machines": machines({one.key: result for one, result in pairs}),
        **tables,
        "trials": [_row(*pair) for pair in pairs],
    }
    publish(options.output / "trials.json", _compact(published), done)
    return 1 if failures else 0


def _row(trial: Trial, result: dict[str, Any]) -> dict[str, Any]:
    """A finished trial as it is published."""
    about = {"number": trial.number, "task": trial.task, "width": trial.width, "blueprint": trial.blueprint}
    return about | {name: value for name, value in result.items() if name != "machine"}


def _compact(content: dict[str, Any]) -> str:
    """JSON with a line for every entry of a list of results."""
    parts = []
    for name, value in content.items():
        lines = ",\n".join(json.dumps(one) for one in value) if isinstance(value, list) else None
        parts.append(f"{json.dumps(name)}: " + (json.dumps(value) if lines is None else f"[\n{lines}\n]"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part: give one as K/N with K from 1 to N, for example 1/2.")
    return int(part), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.growth.trials", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--text", type=Path, help="a text to learn from, for the trials on text")
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), help="left out: all")
    parser.add_argument("--blueprints", nargs="+", choices=("default", *CONTROLS), help="left out: all")
    parser.add_argument("--part", type=_part, default="1/1", metavar="K/N", help="compute every N-th trial, from K on")
    parser.add_argument("--limit", type=int, help="only the first so many trials of the list")
    add_options(parser, RESULTS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
