"""Multilayer perceptrons, and the same ones wider or narrower."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import nn


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers from width to width, with a ReLU between each two."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def scaled(widths: Sequence[int], factor: float) -> list[int]:
    """``widths`` with the hidden ones multiplied by ``factor`` and made whole, at least 1.

    Each is rounded up or down, whichever together comes closest to the parameters that the unrounded widths would
    have. (Rounding each to the nearest moves equal widths all at once: 64-8-8-10 then grows in steps of 7 %.)
    """
    exact = [widths[0], *(width * factor for width in widths[1:-1]), widths[-1]]
    wanted = num_parameters(exact)
    choices = [sorted({max(1, math.floor(width)), max(1, math.ceil(width))}) for width in exact]
    return min(map(list, itertools.product(*choices)), key=lambda whole: abs(num_parameters(whole) - wanted))


def num_parameters(widths: Sequence[float]) -> float:
    """Weights and biases of :func:`mlp`, also for widths that are not whole."""
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(widths))


@dataclass(frozen=True)
class MLPHost:
    """A :class:`~esper.tasks.task.HostFactory` of perceptrons of ``widths``, input and output included."""

    widths: tuple[int, ...]

    def __call__(self, width_factor: float = 1.0) -> nn.Sequential:
        return mlp(scaled(self.widths, width_factor))

    def deeper(self) -> Self:
        """The same with one more hidden layer, as wide as the last one."""
        return replace(self, widths=(*self.widths[:-1], *self.widths[-2:]))
