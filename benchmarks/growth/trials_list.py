"""The trials: which task, width, seed and split each of them has. Written down before any of them was run.

The list follows from the plan below and from nothing else. Small hosts have from half to one and a half times the
width that ``esper run`` gives them, wide ones at least eight times that (four times on mnist1d-cnn, where runs are
dear); they have more room than growth would add, and should refuse. There is no wide transformer: in the 1,200
steps of ``esper run`` a larger one is still far from what it could learn, and has no reason to refuse.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from esper.cli.options import Options, Pace
from esper.tasks.catalogue import load_task
from esper.tasks.task import HostFactory, Task

FIRST_SEED, FIRST_SPLIT = 30_000, 40_000
"""Of no list or table before."""

TEXT = "text"
"""Stands for the text that the caller names."""


class Control(NamedTuple):
    """What must not be kept.

    Args:
        blueprint: all that the run may try.
        growth: settings of growth that are not the defaults.
        colonies: trials of its own, by task; without, it is tried in all trials of small hosts.
    """

    blueprint: str
    growth: Mapping[str, Any] = MappingProxyType({})
    colonies: Mapping[str, int] = MappingProxyType({})


CONTROLS = {
    "placebo": Control("placebo"),
    "random_frozen": Control("random_frozen"),
    # On so few texts no colony would be tried (min_targets).
    "placebo colony": Control("placebo", {"colonies": ("blocks.*.mlp",), "min_targets": 0}, {"text-gpt": 100}),
    "random colony": Control("random_channels", {"min_targets": 0}, {"text-gpt": 80, "mnist1d-cnn": 20}),
}
"""By name."""


class Field(NamedTuple):
    """Data and host of a task, and the width that ``esper run`` gives the host.

    A width counts hidden units of a perceptron, channels of a convolutional network's stem, features of a transformer.
    """

    data: str
    host: str
    width: int

    def load(self, split: int, text: Path | None) -> Task:
        """The task, with the host as ``esper run`` makes it.

        Args:
            split: deals the samples.
            text: the text, for a task that needs one.
        """
        return load_task(self._data(text), split, self.host)

    def pace(self, text: Path | None) -> dict[str, Any]:
        """How long and fast ``esper run`` trains the host."""
        options = Options(data=self._data(text), host=self.host)
        return {name: getattr(options, name) for name in Pace._fields}

    def _data(self, text: Path | None) -> str:
        return self.data if self.data != TEXT else f"text:{text}"


class Share(NamedTuple):
    """Trials of one task and width."""

    task: str
    width: int
    is_wide: bool
    count: int


TASKS = {
    "digits": Field("digits", "mlp", 8),
    "mnist1d": Field("mnist1d", "mlp", 8),
    "mnist1d-cnn": Field("mnist1d", "cnn", 4),
    "text-mlp": Field(TEXT, "mlp", 18),
    "text-gpt": Field(TEXT, "gpt", 24),
}

PLAN = (
    *(Share("digits", width, False, 15) for width in (4, 6, 8, 12)),
    *(Share("digits", width, True, 14) for width in (64, 128, 256)),
    *(Share("mnist1d", width, False, 15) for width in (4, 6, 8, 12)),
    *(Share("mnist1d", width, True, 12) for width in (64, 128, 256)),
    Share("mnist1d-cnn", 4, False, 20),
    Share("mnist1d-cnn", 16, True, 10),
    *(Share("text-mlp", width, False, 10) for width in (12, 18, 24)),
    Share("text-mlp", 144, True, 12),
    Share("text-gpt", 24, False, 30),
)


@dataclass(frozen=True)
class Trial:
    """One line of the list.

    Args:
        number: of the trial, from 0.
        task: name in ``TASKS``.
        width: of the host.
        is_wide: whether the host should refuse to grow.
        seed: of first weights, order of batches, grafts and the deal of the held-out samples.
        split: deals the samples into training, held-out and test part. (A text is always cut at the same places.)
        blueprint: ``"default"`` for the shipped ones, or the name of a control.
    """

    number: int
    task: str
    width: int
    is_wide: bool
    seed: int
    split: int
    blueprint: str = "default"

    @property
    def key(self) -> str:
        """Name of the trial, for files and messages."""
        return f"{self.number:04d}-{self.task}-{self.width}-{self.blueprint}"

    def load(self, text: Path | None) -> Task:
        """Data and host of the trial.

        Args:
            text: a text to learn from, for tasks that need one.
        """
        field = TASKS[self.task]
        task = field.load(self.split, text)
        return replace(task, make_host=Scaled(task.make_host, self.width / field.width))


@dataclass(frozen=True)
class Scaled:
    """A :class:`~esper.tasks.task.HostFactory` of hosts that are wider, or narrower, by a factor."""

    make_host: HostFactory
    factor: float

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        return self.make_host(width_factor=width_factor * self.factor)


def trials() -> list[Trial]:
    """All trials. Any beginning of the list holds every task and width in proportion."""
    places = sorted(
        ((index + 0.5) / share.count, order, share) for order, share in enumerate(PLAN) for index in range(share.count)
    )
    return [
        Trial(number, share.task, share.width, share.is_wide, FIRST_SEED + number, FIRST_SPLIT + number)
        for number, (_, _, share) in enumerate(places)
    ]


def control_trials() -> Iterator[Trial]:
    """The trials of small hosts, with what must not be kept; then those of controls that are colonies."""
    for one in trials():
        if not one.is_wide:
            yield from (replace(one, blueprint=name) for name, control in CONTROLS.items() if not control.colonies)
    number = len(trials())
    for name, control in CONTROLS.items():
        for task, count in control.colonies.items():
            for _ in range(count):
                width = TASKS[task].width
                yield Trial(number, task, width, False, FIRST_SEED + number, FIRST_SPLIT + number, name)
                number += 1


def listed() -> dict[str, Any]:
    """The list as it is published."""
    columns = ("number", "task", "width", "is_wide", "seed", "split", "blueprint")
    everything = [*trials(), *(one for one in control_trials() if CONTROLS[one.blueprint].colonies)]
    rows = [[asdict(one)[name] for name in columns] for one in everything]
    again = [name for name, control in CONTROLS.items() if not control.colonies]
    return {"columns": columns, "trials": rows, "trials_of_small_hosts_are_also_run_with": again}
