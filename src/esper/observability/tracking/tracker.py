"""What a tracker is, which there are, and opening one. Their libraries are imported only then."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol

from esper.contracts.errors import ConfigError, closest


class Tracker(Protocol):
    """Somewhere that shows how runs go. It is called at boundaries and decisions, never in a step, with steps that do
    not fall. Whatever it raises ends the tracking, not the run.

    Attributes:
        id: under which it knows the run; None where the directory says that.
    """

    id: str | None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by name; ``/`` in a name separates groups."""
        ...

    def histograms(self, step: int, values: Mapping[str, Sequence[float]]) -> None:
        """Take samples by name, of each at least one."""
        ...

    def text(self, step: int, text: str) -> None:
        """Take what happened at a step, in Markdown."""
        ...

    def flush(self) -> None:
        """Let what was taken be safe where the process ends without :meth:`close`, as far as that is in its power."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class Run(NamedTuple):
    """What a tracker is to know of a run.

    Args:
        directory: of the run, where a tracker may write.
        name: of the run.
        id: under which the tracker knows it already; None for a new one.
        next_step: the first of which it was not told all; what it holds of this one and later ones, from a process that
            was killed, it is told again.
    """

    directory: Path
    name: str
    id: str | None
    next_step: int


class _Known(NamedTuple):
    module: str
    opener: str
    install: str


_HERE = "esper.observability.tracking"

TRACKERS: dict[str, _Known] = {
    "tensorboard": _Known(f"{_HERE}.tensorboard", "TensorBoard", "'esper-morphogenetic[tensorboard]'"),
    "wandb": _Known(f"{_HERE}.wandb", "WeightsAndBiases", "wandb"),
    "mlflow": _Known(f"{_HERE}.mlflow", "Mlflow", "mlflow"),
    "trackio": _Known(f"{_HERE}.trackio", "Trackio", "trackio"),
}
"""By name: where it is, what opens it, and what to install for it."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be opened here.

    Raises:
        ConfigError: if there is none of a name, its library is not installed, or it is named twice.
    """
    for name in names:
        tracker_kind(name)
        if names.count(name) > 1:
            raise ConfigError(f"The tracker {name} is named twice. Name it once.")


def tracker_kind(name: str) -> Callable[[Run], Tracker]:
    """What opens a tracker.

    Raises:
        ConfigError: as :func:`check_trackers`.
    """
    if name not in TRACKERS:
        raise ConfigError(f"There is no tracker {name!r}. {closest(name, TRACKERS)}")
    module, opener, install = TRACKERS[name]
    try:
        found: Callable[[Run], Tracker] = getattr(import_module(module), opener)
    except ModuleNotFoundError as error:
        raise ConfigError(f"The tracker {name} needs {error.name}: pip install {install}.") from error
    return found
