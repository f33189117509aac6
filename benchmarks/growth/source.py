"""``python -m benchmarks.growth.source``: transformers of 0.25 to 20 million parameters on the bytes of Python source.

It reads the Python files of the environment that it runs in: standard library and installed packages.
"""

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.growth.cases import Case
from benchmarks.growth.environment import Gathered
from benchmarks.growth.goals import Better, NoWorse, Refused
from benchmarks.growth.sized import Benchmark, case_of, main

NAME = "source"
SMALL_ROWS = ("grown", "host_on", "static", "planted", "placebo", "sunk_grown", "sunk_host_on", "sunk_static")
LARGE_ROWS = ("grown", "host_on")
"""Of hosts that are to be refused."""

LARGE = ("5M", "20M")

GOALS = (
    Better("source-0.25M", "grown", "host_on", 0.04),
    NoWorse("source-0.25M", "grown", "static", 0.01),
    Better("source-1M", "grown", "host_on", 0.0),
    NoWorse("source-1M", "grown", "static", 0.01),
    Refused("source-5M", "grown", "host_on"),
    Refused("source-20M", "grown", "host_on"),
)


def cases(sizes: Sequence[str], texts: Mapping[str, Gathered], options: argparse.Namespace) -> list[Case]:
    """A case for every size."""
    return [
        case_of(NAME, size, texts["python"], options, rows=LARGE_ROWS if size in LARGE else SMALL_ROWS)
        for size in sizes
    ]


BENCHMARK = Benchmark(
    NAME,
    __doc__,
    ("python",),
    cases,
    {
        "grown": {
            "host_on": "host trained on",
            "static": "network of the grown size",
            "planted": "grafts from the start",
        },
        "sunk_grown": {"sunk_host_on": "trained host trained on", "sunk_static": "new network of the grown size"},
    },
    GOALS,
)

if __name__ == "__main__":
    raise SystemExit(main(BENCHMARK))
