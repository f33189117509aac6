"""A task: samples in three parts, and the host that is to learn them."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Samples(NamedTuple):
    """Samples ``x`` float32 ``[n, features]`` with their classes ``y`` int64 ``[n]``."""

    x: Tensor
    y: Tensor


class HostFactory(Protocol):
    """Builds the host from the global random state."""

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        """A new host whose hidden widths are scaled by ``width_factor``; the depth stays."""
        ...


@dataclass(frozen=True)
class Task:
    """Classification from real data.

    Args:
        name: short name, fit for a file name.
        train: samples to learn from.
        held_out: samples by which growth is steered and judged.
        test: samples that no decision sees.
        make_host: builds the host.
        labels: the data's own name of every class.
        mean: ``[features]``, and
        std: ``[features]``: samples are ``(raw - mean) / std`` of what the data holds.
        metric: name of the metric, the share of samples that are right.
    """

    name: str
    train: Samples
    held_out: Samples
    test: Samples
    make_host: HostFactory
    labels: tuple[str, ...]
    mean: Tensor
    std: Tensor
    metric: str = "accuracy"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.labels)
