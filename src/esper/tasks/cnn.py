"""A small residual network of convolutions, along one axis or two."""

# N samples, C channels, P positions

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor, nn

from esper.contracts.errors import ConfigError

LEAST_IMAGE = 64
"""Flat samples of at least so many values, if a square number, are taken as images."""


Layout = Literal["first", "last"]
"""Where the channels of an image stand in a sample."""

FEW_CHANNELS = (1, 3, 4)


class ChannelsFirst(nn.Module):
    """Images ``[n, rows, columns, channels]`` as ``[n, channels, rows, columns]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class Residual(nn.Module):
    """Two convolutions around a skip connection (He et al., "Deep residual learning", CVPR 2016, figure 5 left).

    Args:
        inputs: channels read.
        outputs: channels written.
        stride: of the first convolution.
        axes: 1 for signals, 2 for images.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, axes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolution(inputs, outputs, 3, stride, axes), nn.ReLU(), *convolution(outputs, outputs, 3, 1, axes)
        )
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else nn.Sequential(*convolution(inputs, outputs, 1, stride, axes))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.body(x) + self.shortcut(x))
        return y


def convolution(inputs: int, outputs: int, kernel: int, stride: int, axes: int) -> tuple[nn.Module, nn.Module]:
    """A convolution and its batch norm, for 1 or 2 axes."""
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[axes - 1]
    return conv(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), norm(outputs)


def cnn(
    shape: tuple[int, ...], widths: Sequence[int], strides: Sequence[int], classes: int, layout: Layout = "first"
) -> nn.Sequential:
    """Stem, residual stages, global average, head.

    Args:
        shape: channels and positions of a sample; samples come flat or shaped, ``[n, features]`` or ``[n, *shape]``.
        widths: channels of the stem and of every stage.
        strides: of every stage, 2 where it halves the positions.
        classes: number of outputs.
        layout: ``"last"`` where samples hold rows, columns, channels.
    """
    channels, axes = shape[0], len(shape) - 1
    stages = [
        Residual(inputs, outputs, stride, axes)
        for (inputs, outputs), stride in zip(itertools.pairwise(widths), strides, strict=True)
    ]
    come = [nn.Unflatten(1, shape)] if layout == "first" else [nn.Unflatten(1, (*shape[1:], shape[0])), ChannelsFirst()]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)[axes - 1](1)
    return nn.Sequential(
        OrderedDict(
            shaped=nn.Sequential(nn.Flatten(), *come),
            stem=nn.Sequential(*convolution(channels, widths[0], 3, 1, axes), nn.ReLU()),
            stages=nn.Sequential(*stages),
            pool=nn.Sequential(pool, nn.Flatten()),
            head=nn.Linear(widths[-1], classes),
        )
    )


def image_of(sample: tuple[int, ...], layout: Layout | None = None) -> tuple[tuple[int, ...], Layout]:
    """Channels and positions of a sample of this shape, and where its channels stand.

    One axis is a signal, or a square image if its length is a square number of at least 64; two axes are an image of
    one channel; of three one is the channels.

    Args:
        sample: its shape.
        layout: of three axes; None tells it by them: channels are 4 at most, or the axis that is not as long as the
            other two and stands before them.

    Raises:
        ConfigError: if it has more axes, or only the user can tell which are the channels.
    """
    if layout is not None and len(sample) != 3:
        raise ConfigError(
            f"--layout {layout}: a sample of the data has the shape {sample}, without an axis of channels."
        )
    if len(sample) == 1:
        side = math.isqrt(sample[0])
        return ((1, side, side) if side * side == sample[0] >= LEAST_IMAGE else (1, *sample)), "first"
    if len(sample) == 2:
        return (1, *sample), "first"
    if len(sample) > 3:
        raise ConfigError(
            f"--host cnn takes signals and images, and a sample of the data has the shape {sample}. Take --host mlp, "
            "or a factory of your own: --host module:factory."
        )
    first, middle, last = sample
    if layout is None and (first <= max(FEW_CHANNELS) < last or first != middle == last):
        layout = "first"
    if layout is None and last in FEW_CHANNELS and first not in FEW_CHANNELS:
        layout = "last"
    if layout is None:
        raise ConfigError(
            f"A sample of the data has the shape {sample}, and its channels may stand first or last. Say --layout "
            "first or --layout last."
        )
    return (sample if layout == "first" else (last, first, middle)), layout


@dataclass(frozen=True)
class CNNHost:
    """A :class:`~esper.tasks.task.HostFactory` of :func:`cnn`."""

    shape: tuple[int, ...]
    classes: int
    widths: tuple[int, ...] = (4, 4, 6, 8)
    strides: tuple[int, ...] = (1, 2, 2)
    layout: Layout = "first"

    def __call__(self, width_factor: float = 1.0) -> nn.Sequential:
        return cnn(self.shape, self.scaled(width_factor), self.strides, self.classes, self.layout)

    def deeper(self) -> Self:
        """The same with one more residual block behind the others, as wide as the last and at its positions."""
        return replace(self, widths=(*self.widths, self.widths[-1]), strides=(*self.strides, 1))

    def scaled(self, factor: float) -> tuple[int, ...]:
        """``widths`` times ``factor``, each rounded up or down, whichever together come closest to that size."""
        exact = [width * factor for width in self.widths]
        wanted = self.num_parameters(exact)
        choices = [sorted({max(1, math.floor(width)), max(1, math.ceil(width))}) for width in exact]
        return min(itertools.product(*choices), key=lambda whole: abs(self.num_parameters(whole) - wanted))

    def num_parameters(self, widths: Sequence[float]) -> float:
        """Parameters of :func:`cnn`, also for widths that are not whole."""
        kernel = 3 ** (len(self.shape) - 1)
        total = self.shape[0] * widths[0] * kernel + 2 * widths[0] + (widths[-1] + 1) * self.classes
        for (inputs, outputs), stride in zip(itertools.pairwise(widths), self.strides, strict=True):
            total += kernel * (inputs + outputs) * outputs + 4 * outputs
            has_shortcut = stride > 1 or inputs != outputs
            total += (inputs + 2) * outputs if has_shortcut else 0
        return total
