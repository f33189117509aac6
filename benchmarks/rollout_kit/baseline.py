"""Whether ``esper baseline compare`` finds a slowdown of a tenth, and none where there is none.

A clone of this repository gets a commit in which every training step works for a tenth longer, and each comparison is
the product's own: a worktree of the base, two processes, blocks in a drawn order. ``one after the other`` is the
control: the same processes, the base measured first and then the change, and a regression where the mean of the second
is more than 5 % above that of the first.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from esper.evaluation.baseline.cells import Cell, CellWorker, Setting
from esper.evaluation.baseline.compare import Rules, Timed, Weighed, compare
from esper.evaluation.baseline.comparison import verdict
from esper.evaluation.baseline.sides import sides

ROOT = Path(__file__).parents[2]
CELL, SETTING = Cell(32, 100), Setting("cpu")
CALLS_OF_CONTROL = 400
VERDICTS = ("regression", "fine", "undecided")
AT_A_TIME = max(1, len(os.sched_getaffinity(0)) // 4)
"""Comparisons at a time: two threads of a core slow each other down, so that much of the machine stays free."""

SLOWED = """

def _slowed(step):
    from time import thread_time

    looks = [thread_time() for _ in range(101)]
    look_s = (looks[-1] - looks[0]) / 100

    def slowed(self, batch):
        begun = thread_time()
        found = step(self, batch)
        until = begun + 1.1 * (thread_time() - begun) - 3 * look_s
        while thread_time() < until:
            pass
        return found

    return slowed


Session.step = _slowed(Session.step)
"""
"""Added to the session: a tenth of what a step took on the core is spent again, looks at the clock among it."""


@contextmanager
def clone() -> Iterator[Path]:
    """A clone whose HEAD is this commit with slower steps; its working tree is that of HEAD."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(root)], check=True)
        with (root / "src/esper/runtime/session.py").open("a") as file:
            file.write(SLOWED)
        identity = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@example.org")
        subprocess.run(["git", "-C", str(root), *identity, "commit", "--quiet", "-am", "Slower by a tenth"], check=True)
        yield root


def trials(root: Path, kind: str, runs: int) -> dict[str, Any]:
    """So many comparisons of one kind: ``same`` or ``slowed``."""
    both = sides(root, "HEAD", null=True) if kind == "same" else sides(root, "HEAD~1")
    with both.sources() as sources, ThreadPoolExecutor(AT_A_TIME) as pool:

        def one(seed: int) -> list[Timed | Weighed]:
            found = list(compare(*sources, [CELL], SETTING, Rules(seed=seed)))
            print(kind, seed, verdict(found), file=sys.stderr, flush=True)
            return found

        all_found = list(pool.map(one, range(runs)))
    verdicts = Counter(verdict(found) for found in all_found)
    timed = [[one for one in found if isinstance(one, Timed)] for found in all_found]
    return told(verdicts, runs) | {
        "by figure": dict(
            sorted(Counter(f"{one.what}: {one.verdict}" for found in all_found for one in found).items())
        ),
        "median blocks": {
            same[0].what: float(np.median([len(one.base_s) for one in same])) for same in zip(*timed, strict=True)
        },
        "estimates": {
            same[0].what: {"median": float(np.median(values)), "deviation": float(np.std(values))}
            for same in zip(*timed, strict=True)
            if (values := [one.estimate for one in same])
        },
    }


def one_after_the_other(root: Path, runs: int) -> dict[str, Any]:
    """The control, of two sides that are the same."""
    verdicts = Counter[str]()
    with sides(root, "HEAD", null=True).sources() as sources:
        for _ in range(runs):
            with CellWorker(sources[0], "first") as first, CellWorker(sources[1], "second") as second:
                first.build(CELL, SETTING)
                second.build(CELL, SETTING)
                base, change = (np.mean(side.seconds("step", CALLS_OF_CONTROL)) for side in (first, second))
            verdicts["regression" if change > 1.05 * base else "fine"] += 1
            print("one after the other", dict(verdicts), file=sys.stderr, flush=True)
    return told(verdicts, runs)


def told(verdicts: Counter[str], runs: int) -> dict[str, Any]:
    """Verdicts, and the 95 % interval of the share of regressions (Clopper and Pearson)."""
    interval = binomtest(verdicts["regression"], runs).proportion_ci()
    return {"runs": runs, "verdicts": dict(verdicts), "regressions": [interval.low, interval.high]}


def markdown(found: Mapping[str, Any]) -> str:
    """The table of what :func:`measure` has found."""
    rows = [
        f"| {kind} | {one['runs']} | " + " | ".join(str(one["verdicts"].get(what, 0)) for what in VERDICTS) + " |"
        for kind, one in found.items()
    ]
    return "\n".join(["| change | comparisons | regression | fine | undecided |", "|---|---|---|---|---|", *rows])


def measure(same: int = 200, slowed: int = 100, control: int = 50) -> dict[str, Any]:
    """All of it."""
    with clone() as root:
        found = {"slowed": trials(root, "slowed", slowed)}
        subprocess.run(["git", "-C", str(root), "reset", "--quiet", "--hard", "HEAD~1"], check=True)
        found["same"] = trials(root, "same", same)
        found["one after the other"] = one_after_the_other(root, control)
    return found
