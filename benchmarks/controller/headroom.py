"""``python -m benchmarks.controller.headroom FOLDER...``: what growth could win on drawn tasks, and what is won.

Read from the records that training is made of: by family of tasks, what the heuristic saves, what the best of the runs
that were tried saves, and where never growing is best. The best was chosen by the very loss that it is told by, so that
it is an upper bound, which rises with the number of runs.

Below the table stands how much of what a try saves the other tries of its task tell: the squared correlation with
their mean. Whoever knew every task by heart, and nothing of the grafts, would foresee as much.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.controller.telling import table
from benchmarks.machine import machine
from esper.contracts.errors import DataError
from esper.learning.examples import BEST, WORST
from esper.learning.records import Record, headroom, read
from esper.whole_file import write_whole

ALL = "all"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(prog="benchmarks.controller.headroom", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of records")
    parser.add_argument("--output", type=Path, required=True, help="file of the result")
    options = parser.parse_args(arguments)
    try:
        records = read(options.folders)
        found = by_family(records)
    except DataError as error:
        parser.error(str(error))
    print(told(found))
    known = told_by_others(records)
    for name, value in known.items():
        print(f"\nOf what {name} save {value:.0%} of the variance is told by the others of the same task.")
    result = {"machine": machine(), "families": found, "told_by_others": known}
    write_whole(options.output, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def by_family(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What :func:`esper.learning.records.headroom` says of each family and of all tasks.

    Returns:
        By family, the last of them ``"all"``; ``drawn`` counts the tasks where nothing could be tried as well.

    Raises:
        DataError: if nothing could be tried in any task.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for one in records:
        groups[one.family].append(one)
    known = {name: ours for name, ours in sorted(groups.items()) if any(map(_is_open, ours))}
    return {name: {"drawn": len(ours)} | headroom(ours) for name, ours in {**known, ALL: list(records)}.items()}


def told_by_others(records: Sequence[Record]) -> dict[str, float]:
    """Squared correlation of what a try saves with the mean of the other tries of its task, of all that were tried and
    of those that were adopted; clipped as in training."""
    pairs: dict[str, list[tuple[float, float]]] = {"tries": [], "adopted grafts": []}
    for record in records:
        saved = [(one.saved - record.saved_without(one), one.is_adopted) for one in record.tried]
        for name in pairs:
            ours = np.clip([value for value, is_adopted in saved if is_adopted or name == "tries"], WORST, BEST)
            if len(ours) > 1:
                pairs[name] += [(value, (ours.sum() - value) / (len(ours) - 1)) for value in ours]
    return {name: _told(of) for name, of in pairs.items() if len(of) > 2}


def _told(pairs: Sequence[tuple[float, float]]) -> float:
    """Squared correlation; 0 below 0, for where tasks are alike the mean of the others falls as one rises."""
    return round(max(0.0, float(np.corrcoef(np.transpose(pairs))[0, 1])) ** 2, 3)


def told(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Families as rows, shares in percent."""
    heads = ["family", "tasks", "with something to try", "heuristic saves", "for FLOPs", "best saves", "never is best"]
    heads += ["adopted", "of those pay"]
    lines = [
        [
            *(name, str(one["drawn"]), str(one["tasks"])),
            *(f"{one['heuristic']:+.2%}", f"{one['heuristic_flops']:+.0%}", f"{one['best']:+.2%}"),
            *(f"{one['never_is_best']:.0%}", f"{one['adopted']:.0%}", f"{one['pays']:.0%}"),
        ]
        for name, one in found.items()
    ]
    return table(heads, lines)


def _is_open(one: Record) -> bool:
    return bool(one.tried) and one.heuristic is not None


if __name__ == "__main__":
    raise SystemExit(main())
