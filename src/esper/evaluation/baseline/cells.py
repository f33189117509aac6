"""Cells: what is measured, under which setting, and a worker that measures it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esper.contracts.errors import ConfigError, closest
from esper.evaluation.worker import Worker

WHAT = ("forward", "step", "live_step")
"""What is timed: a forward pass, a training step with dormant seeds, and one with a graft that is blended in."""

BATCH_SIZES, SEEDS = (32, 64, 128, 256), (100, 1000, 10_000)
DEVICES = ("cpu", "cuda")
SCRIPT = Path(__file__).with_name("workload.py")

_CYCLE = 8  # one training pass in eight looks at what its seeds sense, and takes longer
_FEWEST_CHANNELS = 128
_CALLS_TO_CALIBRATE = 16


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A layer with so many seeds, and batches of one size."""

    batch_size: int
    seeds: int

    @property
    def channels(self) -> int:
        """Of the layer: enough for its seeds."""
        return max(self.seeds, _FEWEST_CHANNELS)

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.seeds:,} seeds"


@dataclass(frozen=True, slots=True)
class Setting:
    """On what, and with how many threads of torch."""

    device: str
    threads: int = 1

    def check(self) -> None:
        """Refuse what cannot be measured here.

        Raises:
            ConfigError: if there is no such device, or no thread.
        """
        if self.device not in DEVICES:
            raise ConfigError(f"There is no device {self.device!r}. {closest(self.device, DEVICES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("torch finds no GPU here. Measure with --device cpu, or install a torch with CUDA.")
        if self.threads < 1:
            raise ConfigError(f"Torch needs at least 1 thread, not {self.threads}.")


class CellWorker(Worker):
    """A worker that measures one cell with the library of one checkout.

    Args:
        sources: folder that holds the package ``esper``.
        name: of this side, for messages.
        script: what is timed.
    """

    def __init__(self, sources: Path, name: str, script: Path = SCRIPT) -> None:
        super().__init__(script, sources, name)

    def build(self, cell: Cell, setting: Setting) -> dict[str, Any]:
        """Build a cell and run it in; gives ``state_bytes``, ``host_bytes`` and ``device_bytes``."""
        sizes = {"batch_size": cell.batch_size, "seeds": cell.seeds, "channels": cell.channels}
        return self.ask({"do": "build", **sizes, **asdict(setting)})

    def seconds(self, what: str, calls: int) -> list[float]:
        """Of each of so many calls."""
        found: list[float] = self.ask({"do": "time", "what": what, "calls": calls})["seconds"]
        return found

    def calls_in(self, what: str, seconds: float) -> int:
        """About how many calls last so long: whole cycles, one at least."""
        median = float(np.median(self.seconds(what, _CALLS_TO_CALIBRATE)))
        return _CYCLE * max(1, round(seconds / median / _CYCLE))

    def typical(self, what: str, calls: int) -> float:
        """Seconds of one call: the median over cycles of eight calls of the mean within.

        A mean alone would be that of the worst moment of a busy machine; a median alone would never see what only one
        step in eight does.
        """
        cycles = np.array(self.seconds(what, calls)).reshape(-1, _CYCLE)
        return float(np.median(cycles.mean(axis=1)))

    def throughput(self, seconds: float) -> dict[str, Any]:
        """``samples_per_s`` of training, and ``gpu_utilisation`` or why it was not measured."""
        return self.ask({"do": "throughput", "seconds": seconds})
