"""A base and a change, measured in turns in one run, on one machine, until it is clear whether the change is slower."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from esper.contracts.errors import ConfigError, EvaluationError
from esper.evaluation.baseline.cells import SCRIPT, WHAT, Cell, CellWorker, Setting
from esper.evaluation.sequential import Interval, confidence_interval
from esper.evaluation.turns import blocks

Verdict = Literal["regression", "fine", "undecided"]

BLOCK_S = 0.02
"""For which one side of a block is timed at a time, about: long beside a change of process, short beside a drift."""

_PEAK_LOOKS = 3
_NOTHING_KNOWN = Interval(-1.0, np.inf)


@dataclass(frozen=True, slots=True)
class Rules:
    """When a change is a regression.

    Args:
        threshold: a slowdown beyond it is one, as a share.
        memory_threshold: likewise for bytes.
        blocks: after which a cell is left undecided.
        alpha: chance that any latency of all cells is called a regression that it is not, or fine if it is one.
        seed: of the order within blocks.

    Raises:
        ConfigError: if one is out of its range.
    """

    threshold: float = 0.05
    memory_threshold: float = 0.05
    blocks: int = 100
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in {"threshold": self.threshold, "memory threshold": self.memory_threshold}.items():
            if not 0 <= value < np.inf:
                raise ConfigError(f"The {name} must be 0 % or more, and finite, not {100 * value:g} %.")
        if self.blocks < 1:
            raise ConfigError(f"At least 1 block is needed to measure anything, not {self.blocks}.")


@dataclass(slots=True)
class Timed:
    """A latency of one cell, in both sides.

    Args:
        cell: which.
        what: is timed.
        calls: of one side at a time.
        base_s, change_s: seconds of a call in every block.
        verdict: once it is decided it stays.
        slowdown: where it lies, as a share; as of the last block.
    """

    cell: Cell
    what: str
    calls: int
    base_s: list[float] = field(default_factory=list)
    change_s: list[float] = field(default_factory=list)
    verdict: Verdict = "undecided"
    slowdown: Interval = _NOTHING_KNOWN

    @property
    def estimate(self) -> float:
        """The slowdown, as a share: negative where the change is faster."""
        return float(np.expm1(np.median(self._log_ratios_N)))

    @property
    def known_high(self) -> float | None:
        """Upper end of the slowdown; None while it has none."""
        return self.slowdown.high if np.isfinite(self.slowdown.high) else None

    @property
    def _log_ratios_N(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.log(self.change_s) - np.log(self.base_s)

    def add(self, base_s: float, change_s: float, alpha: float, threshold: float) -> None:
        """Take in a block."""
        self.base_s.append(base_s)
        self.change_s.append(change_s)
        found = confidence_interval(self._log_ratios_N, alpha)
        self.slowdown = Interval(float(np.expm1(found.low)), float(np.expm1(found.high)))
        if self.slowdown.low > threshold:
            self.verdict = "regression"
        elif self.slowdown.high < threshold:
            self.verdict = "fine"


@dataclass(frozen=True, slots=True)
class Weighed:
    """Bytes of one cell, in both sides."""

    cell: Cell
    what: str
    base_bytes: int
    change_bytes: int
    threshold: float

    @property
    def growth(self) -> float:
        """As a share."""
        return self.change_bytes / self.base_bytes - 1

    @property
    def verdict(self) -> Verdict:
        """Bytes are counted, not estimated."""
        return "regression" if self.growth > self.threshold else "fine"


Compared = Timed | Weighed
"""One figure of both sides, with its verdict."""


def compare(
    base: Path,
    change: Path,
    cells: Sequence[Cell],
    setting: Setting,
    rules: Rules,
    names: tuple[str, str] = ("the base", "the change"),
    *,
    script: Path = SCRIPT,
) -> Iterator[Compared]:
    """Measure both sides of every cell, each side in a process of its own that waits while the other is measured.

    Args:
        base, change: folders that hold the package ``esper`` of each side.
        cells: what is measured.
        setting: device and threads.
        rules: when a change is a regression.
        names: of both sides, for messages.
        script: what is timed, the same for both sides.

    Yields:
        Latencies and bytes, cell after cell.

    Raises:
        EvaluationError: if a side cannot do what is measured.
    """
    setting.check()
    alpha = rules.alpha / (len(cells) * len(WHAT))

    def both() -> tuple[CellWorker, CellWorker]:
        return CellWorker(base, names[0], script), CellWorker(change, names[1], script)

    for number, cell in enumerate(cells):
        a, b = both()
        with a, b:
            memory = [_built(a, cell, setting), b.build(cell, setting)]
            timed = [Timed(cell, what, a.calls_in(what, BLOCK_S)) for what in WHAT]
            for order in islice(blocks(rules.seed + number), rules.blocks):
                if not (open_ := [one for one in timed if one.verdict == "undecided"]):
                    break
                for one in open_:
                    found: dict[str, list[float]] = {"a": [], "b": []}
                    for side in order:
                        found[side].append((a if side == "a" else b).typical(one.what, one.calls))
                    base_s, change_s = (float(np.exp(np.mean(np.log(found[side])))) for side in ("a", "b"))
                    one.add(base_s, change_s, alpha, rules.threshold)
        yield from timed
        yield from _weighed(cell, setting, memory, rules.memory_threshold, both)


def _built(worker: CellWorker, cell: Cell, setting: Setting) -> dict[str, Any]:
    try:
        return worker.build(cell, setting)
    except EvaluationError as error:
        raise EvaluationError(f"{error} Name a later commit, which can, as the base.") from error


def _weighed(
    cell: Cell,
    setting: Setting,
    memory: list[dict[str, Any]],
    threshold: float,
    both: Callable[[], tuple[CellWorker, CellWorker]],
) -> Iterator[Weighed]:
    """Bytes of both sides. What a process takes at most wobbles: a growth beyond the threshold is looked at again, and
    the least of three looks counts.
    """
    for what in ("state_bytes", "device_bytes", "host_bytes"):
        if memory[0][what] is None:
            continue
        weighed = Weighed(cell, what, memory[0][what], memory[1][what], threshold)
        for _ in range(_PEAK_LOOKS - 1 if what == "host_bytes" and weighed.verdict == "regression" else 0):
            a, b = both()
            with a, b:
                again = [worker.build(cell, setting)[what] for worker in (a, b)]
            least = min(weighed.base_bytes, again[0]), min(weighed.change_bytes, again[1])
            weighed = Weighed(cell, what, *least, threshold)
        yield weighed
