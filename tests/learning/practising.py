"""Small tasks, whose runs take a fraction of a second."""

from dataclasses import replace

from esper.contracts.errors import ConfigError
from esper.learning.generated import Practice, draw
from esper.tasks.mlp import MLPHost

GROWS, FAILS = 5, 0
"""Actions at the second boundary of ``small(7)``: the graft of one is adopted, that of the other is not."""

SECOND = 3
"""Number of that boundary."""


def small(seed: int) -> Practice:
    """Clouds of points for a perceptron that is too narrow, 240 steps."""
    practice = draw(seed, family="clusters")
    (inputs,), outputs = practice.task.shape, len(practice.task.labels)
    task = replace(practice.task, make_host=MLPHost((inputs, 2, outputs)))
    return replace(practice, task=task, steps=240, batch_size=64, lr=5e-3)


def idle(seed: int) -> Practice:
    """One in whose few steps nothing may be tried."""
    return replace(small(seed), steps=24, batch_size=1)


def broken(seed: int) -> Practice:
    """One whose host has no place for growth."""
    return replace(small(seed), task=replace(small(seed).task, make_host=_no_host))


def _no_host() -> None:
    raise ConfigError("There is no such host.")


def quick(seed: int) -> Practice:
    """As ``small``, with 72 steps."""
    return replace(small(seed), steps=72)
