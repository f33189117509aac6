"""Seconds per step of a run, without its first steps."""

import time

import torch

WARM_UP = 5
"""Steps that do not count."""


class Clock:
    """Is told of every step.

    Attributes:
        steps: so far.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._begun = self._last = 0.0

    def tick(self) -> None:
        """A step is over."""
        self.steps += 1
        if self.steps >= WARM_UP:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._last = time.perf_counter()
        if self.steps == WARM_UP:
            self._begun = self._last

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self._last - self._begun) / (self.steps - WARM_UP)
