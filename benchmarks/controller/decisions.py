"""``python -m benchmarks.controller.decisions FOLDER...``: how long a decision of the learned controller takes.

Every boundary of some records is decided once, on one thread: reading the observation, listing what could be done,
judging it, and, where it acts, finding the reasons. A run asks once an epoch.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.controller.telling import table
from benchmarks.machine import machine
from esper.contracts.errors import DataError
from esper.learning.records import Record, read
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.policy import LearnedPolicy
from esper.whole_file import write_whole

ASKED = 5.0
"""Milliseconds."""


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(prog="benchmarks.controller.decisions", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of records")
    parser.add_argument("--weights", type=Path, help="those that come with Esper if not given")
    parser.add_argument("--output", type=Path, required=True, help="file of the result")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        found = timed(read(options.folders), options.weights)
    except DataError as error:
        parser.error(str(error))
    print(table(["what it does", "decisions", "median ms", "95 of 100 within"], list(map(_row, found))))
    write_whole(options.output, (json.dumps({"machine": machine(), "decisions": found}, indent=1) + "\n").encode())
    return 0


def timed(records: Sequence[Record], weights: Path | None) -> list[dict[str, Any]]:
    """Milliseconds of decisions, where it waits and where it acts, each with the most actions that there were."""
    taken: dict[str, list[tuple[float, int]]] = {"waits": [], "acts": []}
    for record in records:
        for one in record.seen:
            policy = LearnedPolicy(record.config, weights)
            began = time.perf_counter()
            commands = policy.decide(one.observation)
            spent = 1e3 * (time.perf_counter() - began)
            taken["acts" if commands else "waits"].append((spent, len(legal_actions(one.observation, record.config))))
    return [{"does": name, **_summary(ours)} for name, ours in taken.items() if ours]


def _summary(taken: Sequence[tuple[float, int]]) -> dict[str, float | int]:
    ms, actions = (np.array(column) for column in zip(*taken, strict=True))
    return {
        "decisions": len(ms),
        "median_ms": round(float(np.median(ms)), 2),
        "p95_ms": round(float(np.quantile(ms, 0.95)), 2),
        "within_asked": round(float((ms <= ASKED).mean()), 4),
        "actions": int(np.median(actions)),
        "most_actions": int(actions.max()),
    }


def _row(one: dict[str, Any]) -> list[str]:
    return [one["does"], f"{one['decisions']:,}", f"{one['median_ms']:.1f}", f"{one['p95_ms']:.1f} ms"]


if __name__ == "__main__":
    raise SystemExit(main())
