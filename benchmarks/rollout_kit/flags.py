"""Feature flags: are shares as large as they say, does each model stay where it is, and what does a look take?"""

import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esper.contracts.flags import FLAGS
from esper.flags import FlagStore, set_flag

IN_ANOTHER_PROCESS = "import sys; from benchmarks.rollout_kit.flags import who_is_on; print(who_is_on(*sys.argv[1:]))"


def measure(count: int = 100_000) -> dict[str, Any]:
    """Everything, over so many model ids."""
    ids = [f"model-{number}" for number in range(count)]
    fewer = ids[: count // 50]
    return {
        "ids": count,
        "shares": {share: shares(ids, share) for share in ("1%", "10%", "50%")},
        "stickiness": stickiness(fewer),
        "monotony": monotony(fewer),
        "cached_evaluation_us": cached_us(),
    }


def shares(ids: Sequence[str], share: str) -> dict[str, Any]:
    """Share of models with each flag, and its distance from what was set, in standard errors; and whether two flags
    choose their models independently (phi coefficient times the root of the number of models)."""
    wanted = float(share.rstrip("%")) / 100
    with _store(share) as path:
        on = _cohorts(path, ids)
    told = {}
    for name, chosen in on.items():
        error = math.sqrt(wanted * (1 - wanted) / len(ids))
        told[name] = {"share": len(chosen) / len(ids), "z": (len(chosen) / len(ids) - wanted) / error}
    pairs = {
        f"{one}, {other}": _phi(on[one], on[other], len(ids)) * math.sqrt(len(ids))
        for one, other in itertools.combinations(FLAGS, 2)
    }
    return {"flags": told, "pairs_z": pairs}


def stickiness(ids: Sequence[str]) -> dict[str, Any]:
    """Models that are decided otherwise by another store object, or by another process with another hash seed."""
    with _store("37%") as path:
        here, again = _cohorts(path, ids), _cohorts(path, ids)
        line = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), str(len(ids))]
        told = subprocess.run(
            line, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
        )
    there = told.stdout.strip()
    changed = sum(len(here[name] ^ again[name]) for name in FLAGS)
    return {"decisions": len(ids) * len(FLAGS), "changed": changed, "same_in_another_process": there == _said(here)}


def who_is_on(path: str, count: str) -> str:
    """The cohorts of a store as one line, for comparison between processes."""
    return _said(_cohorts(Path(path), [f"model-{number}" for number in range(int(count))]))


def monotony(ids: Sequence[str], step: int = 1) -> dict[str, Any]:
    """Models that a growing share, 0 to 100 % in equal steps, takes out again; and how many steps add somebody."""
    lost, before, growing = 0, {name: set[str]() for name in FLAGS}, 0
    for percent in range(0, 101, step):
        with _store(f"{percent}%") as path:
            now = _cohorts(path, ids)
        lost += sum(len(before[name] - now[name]) for name in FLAGS)
        growing += all(len(now[name]) > len(before[name]) for name in FLAGS)
        before = now
    return {"ids": len(ids), "lost": lost, "steps_that_add": growing, "on_at_100": len(before[next(iter(FLAGS))])}


def cached_us() -> dict[str, float]:
    """Microseconds of a look at a flag: of one that is resolved, and by a store that has resolved the model before."""
    with _store("50%") as path:
        store = FlagStore(path, {})
        flags = store.resolve("model-7")
        looks = {
            "resolved": lambda: flags.is_on("message_bus"),
            "by_the_store": lambda: store.resolve("model-7").is_on("message_bus"),
        }
        return {name: _median_us(look) for name, look in looks.items()}


def _median_us(look: Any, number: int = 20_000) -> float:
    return statistics.median(timeit.repeat(look, number=number, repeat=9)) / number * 1e6


@contextmanager
def _store(share: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flags.json"
        for name in FLAGS:
            set_flag(path, name, share)
        yield path


def _cohorts(path: Path, ids: Sequence[str]) -> dict[str, set[str]]:
    store = FlagStore(path, {}, look_every_s=3600)
    resolved = [store.resolve(one) for one in ids]
    return {name: {flags.model_id for flags in resolved if flags.is_on(name)} for name in FLAGS}


def _said(cohorts: dict[str, set[str]]) -> str:
    return repr([sorted(cohorts[name]) for name in FLAGS])


def _phi(one: set[str], other: set[str], count: int) -> float:
    a, b, both = len(one) / count, len(other) / count, len(one & other) / count
    return (both - a * b) / math.sqrt(a * (1 - a) * b * (1 - b))
