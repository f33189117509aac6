"""``python -m benchmarks.controller.headroom FOLDER...``: what growth could win on drawn tasks, and what is won.

Read from the records that training is made of: by family of tasks, what the heuristic saves, what the best of the runs
that were tried saves, and where never growing is best. The best was chosen by the very loss that it is told by, so that
it is an upper bound, which rises with the number of runs.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.controller.telling import table
from benchmarks.machine import machine
from esper.contracts.errors import DataError
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
        found = by_family(read(options.folders))
    except DataError as error:
        parser.error(str(error))
    print(told(found))
    write_whole(options.output, (json.dumps({"machine": machine(), "families": found}, indent=1) + "\n").encode())
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
