"""How the process is doing: steps and their times, memory, the device; written down now and then."""

import os
import time
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch

from esper.contracts.events import ABSENT, STEP_BOUNDS_S, Vitals
from esper.kasmina.places.place import Place
from esper.kasmina.seeds.reading import read_together
from esper.runtime.record.gpu import utilisation
from esper.runtime.record.journal import Journal

EVERY_S = 10.0
"""Between two lines within an epoch, at least."""


class Pulse:
    """Counts steps and writes ``vitals``. A step costs two looks at the clock and a few additions.

    Args:
        journal: takes the lines; nothing is measured while nobody reads them.
        places: of the run.
        device: of the model.

    Attributes:
        bus: tells the counts of the bus that the run is on; None if it is on none.
        ended: when the session had done with the step before.
    """

    def __init__(self, journal: Journal, places: dict[str, Place], device: torch.device) -> None:
        self._journal, self._places, self._device = journal, places, device
        self.bus: Callable[[], dict[str, Any]] | None = None
        self._counts = [0] * (len(STEP_BOUNDS_S) + 1)
        self._step_seconds, self._step = 0.0, 0
        self._since = self.ended = time.perf_counter()

    def beat(self, step: int, begun: float) -> None:
        """A step of the run is over.

        Args:
            step: batches that are done.
            begun: when it began, by ``time.perf_counter``.
        """
        seconds = time.perf_counter() - begun
        self._counts[bisect_left(STEP_BOUNDS_S, seconds)] += 1
        self._step_seconds += seconds
        self._step = step

    def rest(self) -> None:
        """What the session does is over; the caller's own loop makes the next step."""
        self.ended = time.perf_counter()

    def write_if_due(self, arm: str | None) -> None:
        """Write a line if none was written for long. Reads nothing from the device.

        Args:
            arm: name of the arm that runs.
        """
        if time.perf_counter() - self._since >= EVERY_S and self._journal.is_read:
            self._write(self._step, arm)

    def write(self, step: int) -> None:
        """Write a line at a boundary, with what grows; reads from the device where something does."""
        if self._journal.is_read:
            self._write(step, None, grafts=self._grafts())

    def _write(self, step: int, arm: str | None, grafts: dict[str, dict[str, Any]] = ABSENT) -> None:
        now = time.perf_counter()
        cuda = torch.cuda if self._device.type == "cuda" else None
        self._journal.write(
            Vitals(
                step=step,
                arm=arm,
                seconds=round(now - self._since, 4),
                steps=sum(self._counts),
                step_seconds=round(self._step_seconds, 6),
                step_times=self._counts,
                memory_bytes=resident_bytes(),
                device_memory_bytes=None if cuda is None else cuda.memory_allocated(self._device),
                device_memory_peak_bytes=None if cuda is None else cuda.max_memory_allocated(self._device),
                gpu_utilisation=None if cuda is None else utilisation(self._device),
                grown_parameters=sum(place.arena.num_parameters for place in self._places.values()),
                grafts=grafts,
                bus=ABSENT if self.bus is None else self.bus(),
            )
        )
        self._counts, self._step_seconds = [0] * len(self._counts), 0.0
        self._since = now

    def _grafts(self) -> dict[str, dict[str, Any]]:
        growing = {layer_id: place for layer_id, place in self._places.items() if place.arena.live}
        if not growing:
            return {}
        alphas = read_together([[place.state.alpha] for place in growing.values()])
        told = {}
        for (layer_id, place), (alpha_S,) in zip(growing.items(), alphas, strict=True):
            of_grafts = [float(alpha_S[graft.seeds[0]]) for graft in place.arena.live]
            told[layer_id] = {"live": len(of_grafts), "alpha": round(sum(of_grafts) / len(of_grafts), 4)}
        return told


def resident_bytes() -> int | None:
    """Of the host's memory that this process holds now; None if the system does not tell it."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
