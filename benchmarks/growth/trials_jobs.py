"""Jobs whose results are lines of files, so that an interrupted benchmark goes on where it stopped.

One process writes one file; the files of several machines in one folder are read as one.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.growth.one_thread import on_one_thread
from benchmarks.machine import machine
from esper.evaluation.pool import each

Result = dict[str, Any]


def finished(directory: Path) -> dict[str, Result]:
    """Results of all files of a folder, by the keys of their jobs. A line that was cut is left out."""
    found: dict[str, Result] = {}
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                record = json.loads(line)
                found[record.pop("key")] = record
    return found


def compute(work: Callable[[Any], Result], jobs: Mapping[str, Any], path: Path, workers: int) -> list[str]:
    """Run the jobs that no file beside ``path`` holds yet, in processes of one thread each.

    Args:
        work: called with a job, in another process.
        jobs: by key, in the order in which they shall begin.
        path: file that takes the results, each with the machine.
        workers: number of processes.

    Returns:
        What failed: key and error of each such job; the others are not lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_cut_line(path)
    done = finished(path.parent)
    missing = {key: job for key, job in jobs.items() if key not in done}
    failures: list[str] = []
    with path.open("a") as file, closing(each(partial(on_one_thread, work), missing, workers)) as hearing:
        for count, heard in enumerate(hearing, start=1):
            if heard.kind == "done":
                file.write(json.dumps({"key": heard.key, "machine": machine(), **heard.value}) + "\n")
                file.flush()
            else:
                failures.append(f"{heard.key}: {heard.value}")
                print(f"FAILED {failures[-1]}", flush=True)
            if count % 10 == 0 or count == len(missing):
                print(f"{count} of {len(missing)} jobs", flush=True)
    return failures


def changes(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of pace and growth that are not ``esper run``'s: a try's, which alone is too short to try to grow."""
    return ({}, {}) if options.epochs is None else ({"epochs": options.epochs}, {"min_targets": 0})


def add_options(parser: argparse.ArgumentParser, output: Path) -> None:
    """Options of every benchmark whose results are such lines.

    Args:
        parser: takes them.
        output: where results are kept unless told otherwise.
    """
    parser.add_argument("--epochs", type=int, help="shorter runs, for a try; left out: as esper run")
    parser.add_argument("--tables", action="store_true", help="compute nothing; tell what is finished")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, of one thread each")
    parser.add_argument("--output", type=Path, default=output, help="where results are kept")


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options; a try may not lie beside the published results."""
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.output == parser.get_default("output"):
        parser.error("A try would be taken for the benchmark. Give --epochs together with an --output of its own.")
    return options


def publish(path: Path, text: str, done: Mapping[str, Result]) -> None:
    """Write results, unless no job is finished: what is published stays as it is then."""
    if not done:
        print(f"Nothing is finished: {path} stays as it is.")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machines(results: Mapping[str, Result]) -> list[Result]:
    """What the results were computed on, each kind once."""
    return [json.loads(text) for text in sorted({json.dumps(one["machine"]) for one in results.values()})]


def _drop_cut_line(path: Path) -> None:
    """What would be written behind a cut line would be lost with it."""
    if path.exists():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])
