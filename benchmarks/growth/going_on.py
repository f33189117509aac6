"""``python -m benchmarks.growth.going_on``: a transformer that was trained on Python source is given other texts.

The texts are C headers and English of the environment that it runs in. The trained host grows, is trained on, or is
frozen and adapted by LoRA, and a new network begins with them: at equal further FLOPs, and with as many parameters as
growth added.
"""

import argparse
from collections.abc import Mapping, Sequence

from benchmarks.growth.cases import Case
from benchmarks.growth.environment import Gathered
from benchmarks.growth.goals import Better
from benchmarks.growth.sized import Benchmark, case_of, main
from benchmarks.growth.source import NAME as SOURCE

NAME = "going_on"
FURTHER = ("c", "english")
ROWS = ("sunk_grown", "sunk_host_on", "sunk_lora", "sunk_static")
GOALS = tuple(
    Better(f"{kind}-{size}", "sunk_grown", row, 0.0) for size in ("0.25M", "1M") for kind in FURTHER for row in ROWS[1:]
)


def cases(sizes: Sequence[str], texts: Mapping[str, Gathered], options: argparse.Namespace) -> list[Case]:
    """For every size and kind of text a case whose hosts were trained as those of ``source``."""
    return [
        case_of(kind, size, texts[kind], options, rows=ROWS, before=case_of(SOURCE, size, texts["python"], options))
        for size in sizes
        for kind in FURTHER
    ]


BENCHMARK = Benchmark(
    NAME,
    __doc__,
    ("python", *FURTHER),
    cases,
    {"sunk_grown": {"sunk_host_on": "trained on", "sunk_lora": "LoRA", "sunk_static": "new network"}},
    GOALS,
)

if __name__ == "__main__":
    raise SystemExit(main(BENCHMARK))
