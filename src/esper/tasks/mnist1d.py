"""MNIST-1D: ten strokes of twelve points, padded, stretched, moved, buried in noise and sheared; 40 values remain.

Written from the description in Greydanus and Kobak, "Scaling Down Deep Learning with MNIST-1D", ICML 2024
(arXiv:2011.14439), sections 2 and 3 with their default constants; the heights of the ten templates are the data set's
own. The random stream is ours, so the samples are others than those of the authors' file, from the same distribution.
"""

# N samples, W template points, P positions before downsampling, F features

from typing import Any

import numpy as np
import torch

from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task

TEMPLATES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
HEIGHT = 1 / 6
LEAST_PADDING, MOST_PADDING = 36, 60
MAX_TRANSLATION = 48
SCALE = 0.4
CORRELATED_NOISE, CORRELATION_LENGTH, WHITE_NOISE = 0.25, 2.0, 0.02
SHEAR = 0.75
FEATURES = 40
NUM_SAMPLES, NUM_TEST = 5000, 1000
NUM_HELD_OUT = 1000
SEED = 20_201_129

Array = np.ndarray[Any, np.dtype[np.float64]]


def mnist1d(seed: int) -> Task:
    """3,000 signals to learn from, 1,000 held out, 1,000 for the test; the host is an MLP 40-8-8-10.

    The samples are always the same, and so are the last 1,000, the test part; ``seed`` deals the other 4,000.
    """
    x, y = signals(NUM_SAMPLES, SEED)
    given, x_test = x[:-NUM_TEST], torch.from_numpy(x[-NUM_TEST:]).float()
    order = torch.randperm(len(given), generator=torch.Generator().manual_seed(seed))
    held_out, train = order.split([NUM_HELD_OUT, len(given) - NUM_HELD_OUT])
    x_given, codes = torch.from_numpy(given).float(), torch.from_numpy(y)
    return Task(
        name="mnist1d",
        train=Samples(x_given[train], codes[train]),
        held_out=Samples(x_given[held_out], codes[held_out]),
        test=Samples(x_test, codes[-NUM_TEST:]),
        make_host=MLPHost((FEATURES, 8, 8, len(TEMPLATES))),
        labels=tuple(str(digit) for digit in range(len(TEMPLATES))),
        shape=(FEATURES,),
        mean=torch.zeros(FEATURES),
        std=torch.ones(FEATURES),
    )


def signals(num_samples: int, seed: int) -> tuple[Array, np.ndarray[Any, np.dtype[np.int64]]]:
    """Draw signals, as many of each class (or one more), in random order.

    Returns:
        float64 ``[num_samples, 40]``, every feature of mean 0 and standard deviation 1, and classes int64
        ``[num_samples]``.
    """
    rng = np.random.default_rng(seed)
    y_N = rng.permutation(np.arange(num_samples) % len(TEMPLATES))
    x_NP = _placed(_strokes()[y_N], rng)
    shape: tuple[int, int] = x_NP.shape
    noise_NP = CORRELATED_NOISE * _smoothed(rng.standard_normal(shape))
    x_NP = np.where(x_NP != 0, x_NP, noise_NP) + WHITE_NOISE * rng.standard_normal(shape)
    slope_N1 = SHEAR * (rng.random((num_samples, 1)) - 0.5)
    x_NP -= slope_N1 * np.linspace(-0.5, 0.5, x_NP.shape[1])
    x_NF = _resampled(x_NP, np.broadcast_to(np.linspace(0, x_NP.shape[1] - 1, FEATURES), (num_samples, FEATURES)))
    return (x_NF - x_NF.mean(0)) / x_NF.std(0), y_N


def _strokes() -> Array:
    """The templates with equal spread, beginning at height 0: ``[10, 12]``."""
    heights = np.array(TEMPLATES)
    heights = (heights - heights.mean(1, keepdims=True)) / heights.std(1, keepdims=True)
    return HEIGHT * (heights - heights[:, :1])


def _placed(stroke_NW: Array, rng: np.random.Generator) -> Array:
    """Strokes stretched (padding of random length is stretched along), scaled and moved around; 0 where there is none.

    What lies under a stroke is marked by a height other than 0, also where the stroke passes through 0.
    """
    num_samples, width = stroke_NW.shape
    length = width + MOST_PADDING
    padding_N1 = rng.integers(LEAST_PADDING, MOST_PADDING + 1, (num_samples, 1))
    position_NP = np.linspace(0, 1, length) * (width + padding_N1 - 1)
    padded = np.concatenate([stroke_NW + 1e-8, np.zeros((num_samples, MOST_PADDING))], axis=1)
    x_NP = _resampled(padded, position_NP)
    x_NP *= 1 + SCALE * (rng.random((num_samples, 1)) - 0.5)
    shift_N1 = rng.integers(MAX_TRANSLATION, size=(num_samples, 1))
    return np.take_along_axis(x_NP, (np.arange(length) - shift_N1) % length, axis=1)


def _smoothed(noise_NP: Array) -> Array:
    """Convolved with a Gaussian over positions, mirrored at the ends."""
    radius = round(4 * CORRELATION_LENGTH)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / CORRELATION_LENGTH) ** 2)
    mirrored = np.pad(noise_NP, ((0, 0), (radius, radius)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, len(kernel), axis=1)
    return windows @ (kernel / kernel.sum())


def _resampled(x_NP: Array, position_NQ: Array) -> Array:
    """Linear interpolation of every row at positions of its own."""
    left = np.clip(np.floor(position_NQ).astype(np.int64), 0, x_NP.shape[1] - 2)
    share = position_NQ - left
    low, high = (np.take_along_axis(x_NP, left + step, axis=1) for step in (0, 1))
    return low + share * (high - low)
