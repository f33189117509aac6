"""A task: samples in three parts, and the host that is to learn them."""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from esper.contracts.errors import ConfigError


class Samples(NamedTuple):
    """Samples with what is to be predicted.

    Classification has ``x`` float32 ``[n, features]`` and ``y`` int64 ``[n]``, prediction of the next token ``x`` and
    ``y`` int64 ``[n, tokens]``, or uint8 where many bytes are to be held; hosts are given int64. A quantity is
    float32 ``[n]``, standardised by the training part; several labels are float32 ``[n, labels]`` of 0 and 1.
    """

    x: Tensor
    y: Tensor


class Scale(NamedTuple):
    """A quantity in its own units is ``y * std + mean``."""

    mean: float
    std: float


METRICS = {"classification": "accuracy", "regression": "R2", "multilabel": "labels right"}
"""Name of the metric of each kind of task, of which more is better; it is a mean over samples."""


Precision = Literal["fp32", "bf16"]
"""Of the forward pass; weights and losses are float32 in both. See :func:`esper.tasks.placed.placed`."""


class HostFactory(Protocol):
    """Builds the host from the global random state."""

    def __call__(self, width_factor: float = 1.0) -> nn.Module:
        """A new host whose hidden widths are scaled by ``width_factor``; the depth stays."""
        ...


@runtime_checkable
class DeepeningFactory(HostFactory, Protocol):
    """A factory that also knows a deeper host; every built-in one is."""

    def deeper(self) -> Self:
        """A factory of the host with one more hidden layer, residual block or transformer block."""
        ...


@dataclass(frozen=True)
class Task:
    """What is learned: classes of real samples, a quantity, several labels, or the next token of a text.

    Args:
        name: short name, fit for a file name.
        train: samples to learn from.
        held_out: samples by which growth is steered and judged.
        test: samples that no decision sees.
        make_host: builds the host, whose outputs are ``[n, classes]``, ``[n, tokens, classes]``, ``[n, labels]``, or
            ``[n, 1]`` for a quantity.
        labels: the data's own name of every output: of a class, a label, the quantity; of a text, its characters or
            the values of bytes.
        shape: of a sample as the data holds it; ``x`` may have it flattened.
        mean: with the axes of a sample in ``x``, and
        std: alike: ``x`` is ``(raw - mean) / std`` of what the data holds. None for tokens.
        groups: int64 ``[held-out samples]``: those of one number belong together and are judged as one. None where
            every sample stands by itself.
        test_groups: int64 ``[test samples]``, alike.
        is_scalable: whether ``make_host`` follows its ``width_factor``.
        metric: name of the metric, of which more is better.
        kind: of what is predicted; a text counts as classification.
        scale: of a quantity; None for all else.
        features: name of every feature in ``x``, of a table.
        columns: how each column of a table becomes features, as plain values.
        told: what was decided about the data, a sentence each.
        tokens: what a text is read as.
        precision: in which it is learned.
        is_compiled: whether torch compiles what learns it.
    """

    name: str
    train: Samples
    held_out: Samples
    test: Samples
    make_host: HostFactory
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    mean: Tensor | None = None
    std: Tensor | None = None
    groups: Tensor | None = None
    test_groups: Tensor | None = None
    is_scalable: bool = True
    metric: str = METRICS["classification"]
    kind: Literal["classification", "regression", "multilabel"] = "classification"
    scale: Scale | None = None
    features: tuple[str, ...] = ()
    columns: tuple[dict[str, Any], ...] = ()
    told: tuple[str, ...] = ()
    tokens: Literal["characters", "bytes"] = "characters"
    precision: Precision = "fp32"
    is_compiled: bool = False

    @property
    def num_classes(self) -> int:
        """Number of outputs: of classes, labels or different tokens; 1 for a quantity."""
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where its samples lie and its hosts are built."""
        return self.train.y.device

    @property
    def is_text(self) -> bool:
        """Whether the next token is to be predicted, at every position of a window."""
        return self.train.y.dim() == 2 and not self.train.y.is_floating_point()

    def example(self, count: int) -> Tensor:
        """The first ``count`` training samples, as hosts are given them."""
        return as_given(self.train.x[:count])


def as_given(x: Tensor) -> Tensor:
    """Samples as hosts are given them: bytes as int64 tokens."""
    return x.long() if x.dtype is torch.uint8 else x


def deeper(task: Task) -> Task:
    """The same task, whose host has one more hidden layer, residual block or transformer block: another shape.

    Raises:
        ConfigError: if the host's factory knows none, as those of the user's own.
    """
    if not isinstance(task.make_host, DeepeningFactory):
        raise ConfigError(
            f"The host of {task.name} has no deeper version: its factory needs a method deeper() that gives another "
            "factory, as those of mlp, cnn and gpt have. Deepen a task before it is placed on a device."
        )
    return replace(task, make_host=task.make_host.deeper())
