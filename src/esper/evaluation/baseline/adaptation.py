"""What growth comes to in runs: how many trials end in something that stays, and how long one takes."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.evaluation.growing import growing
from esper.observability.lifecycles import lifecycles
from esper.observability.record import read
from esper.tasks.catalogue import load_task

TASK, EPOCHS, BATCH_SIZE, LR, SCHEDULE = "digits", 30, 32, 5e-3, "cosine"
"""Of the runs that are grown where none are given: as ``esper run`` does, at half its length."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and quantiles of a quantity, all in its unit."""

    mean: float
    p50: float
    p95: float
    p99: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], unit: float = 1.0) -> "Spread":
        """Of values that are there, in multiples of ``unit``."""
        scaled = np.array(values) / unit
        p50, p95, p99 = (float(one) for one in np.quantile(scaled, [0.5, 0.95, 0.99]))
        return cls(float(scaled.mean()), p50, p95, p99, len(values))


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Lifecycles of runs.

    Args:
        source: what was run, in words.
        runs: how many.
        outcomes: lifecycles by the name of the state in which they ended.
        success_rate: share of lifecycles that became fossils among those that were tried: a candidate that was
            cancelled before its turn is none. None if nothing was tried.
        steps: from birth to end, of those that were tried; None if nothing was.
        seconds: likewise, by the clock of the log.
    """

    source: str
    runs: int
    outcomes: dict[str, int]
    success_rate: float | None
    steps: Spread | None
    seconds: Spread | None


def adaptation_of(directories: Sequence[Path], source: str = "run directories") -> Adaptation:
    """What the logs of runs say.

    Raises:
        ConfigError: if one is no run directory.
    """
    ended = [
        one.report | {"begun": one.transitions[0]["time"]}
        for directory in directories
        for one in lifecycles(read(directory))
        if one.report is not None and one.transitions
    ]
    outcomes = Counter(report["outcome"] for report in ended)
    tried = [report for report in ended if report["outcome"] != "CANCELLED"]
    return Adaptation(
        source,
        len(directories),
        dict(sorted(outcomes.items())),
        outcomes["FOSSILIZED"] / len(tried) if tried else None,
        Spread.of([report["ended_step"] - report["born_step"] for report in tried]) if tried else None,
        Spread.of([report["time"] - report["begun"] for report in tried]) if tried else None,
    )


def grown_here(seeds: Sequence[int]) -> Adaptation:
    """Grow a run for each seed on a built-in task, on the CPU, and look at them."""
    if not seeds:
        raise ConfigError("At least one run is needed to see what growth comes to.")
    with tempfile.TemporaryDirectory(prefix="esper-") as temporary:
        directories = [Path(temporary) / str(seed) for seed in seeds]
        for seed, directory in zip(seeds, directories, strict=True):
            growing(
                load_task(TASK, seed, "mlp"),
                GrowthConfig(seed=seed),
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                lr=LR,
                schedule=SCHEDULE,
                seed=seed,
                directory=directory,
            ).finish()
        return adaptation_of(directories, f"{TASK}, mlp, {EPOCHS} epochs, seeds {', '.join(map(str, seeds))}")
