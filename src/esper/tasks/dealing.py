"""From features and a target, wherever they were read, to a task: parts, standardised features, a host."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import DataError
from esper.tasks.cells import Array
from esper.tasks.columns import Encoded
from esper.tasks.mlp import MLPHost
from esper.tasks.targets import Target
from esper.tasks.task import METRICS, Samples, Scale, Task

TEST_SHARE = HELD_OUT_SHARE = 0.2
MIN_SAMPLES = 100
HIDDEN = 8


class Unseen(NamedTuple):
    """Samples of a test part that the file gives: ``x [n, features]``, and ``y`` as the target has it."""

    x: Array
    y: Tensor


def deal(
    path: Path,
    encode: Callable[[Array], Encoded],
    target: Target,
    seed: int,
    *,
    what: str,
    shape: tuple[int, ...] | None = None,
    unseen: Unseen | None = None,
    told: tuple[str, ...] = (),
) -> Task:
    """Deal, encode and standardise, the latter two by the training part.

    Without ``unseen``, 20 % of the samples become the test part; 20 % of the rest are held out. The host is an MLP
    features-8-8-outputs, wider where there are more than 16 outputs.

    Args:
        path: of the file, for messages; its stem names the task.
        encode: gives the features of all samples, from the indices of the training part.
        target: of all samples.
        seed: deals the samples.
        what: a message calls the features.
        shape: of a sample; None if it has features in a row.
        unseen: samples of the test part.
        told: what was decided about the data.

    Raises:
        DataError: saying what is wrong with the file, and what would be right.
    """
    samples = len(target.y)
    check_enough(path, what, samples)
    rest, test = _order(target.rare(), seed), torch.zeros(0, dtype=torch.int64)
    if unseen is None:
        test, rest = rest.split([round(TEST_SHARE * samples), samples - round(TEST_SHARE * samples)])
    held_out, train = rest.split([round(HELD_OUT_SHARE * len(rest)), len(rest) - round(HELD_OUT_SHARE * len(rest))])
    encoded = encode(train.numpy())
    mean, std = _moments(encoded.x[train.numpy()])
    x = _standardised(path, encoded.x, mean, std, what)
    scale, y, y_test = _scaled(target, train, None if unseen is None else unseen.y)
    hidden, outputs = max(HIDDEN, len(target.outputs) // 2), len(target.outputs)
    return Task(
        name=Path(path.name.removesuffix(".gz")).stem,
        train=Samples(x[train], y[train]),
        held_out=Samples(x[held_out], y[held_out]),
        test=Samples(x[test], y[test])
        if unseen is None or y_test is None
        else Samples(_standardised(path, unseen.x, mean, std, what), y_test),
        make_host=MLPHost((encoded.x.shape[1], hidden, hidden, outputs)),
        labels=target.outputs,
        shape=shape or (encoded.x.shape[1],),
        mean=torch.from_numpy(mean).float(),
        std=torch.from_numpy(std).float(),
        kind=target.kind,
        metric=METRICS[target.kind],
        scale=scale,
        features=encoded.names,
        columns=encoded.columns,
        told=told,
    )


def check_enough(path: Path, what: str, samples: int, least: int = MIN_SAMPLES) -> None:
    """Refuse too few samples."""
    if samples < least:
        raise DataError(f"{path}: {what} has {samples} samples; at least {least} are needed to train and to judge.")


def _order(rare: Tensor, seed: int) -> Tensor:
    """A random order with one sample of every kind at its end, where the training part is taken from."""
    order = torch.randperm(len(rare), generator=torch.Generator().manual_seed(seed))
    is_last = torch.zeros(len(rare), dtype=torch.bool)
    is_last[torch.from_numpy(np.unique(rare[order].numpy(), return_index=True)[1])] = True
    return torch.cat([order[~is_last], order[is_last]])


def _scaled(target: Target, train: Tensor, unseen: Tensor | None) -> tuple[Scale | None, Tensor, Tensor | None]:
    """A quantity in standard deviations of the training part from its mean; other targets as they are."""
    if target.kind != "regression":
        return None, target.y, unseen
    known = target.y[train].double()
    mean, std = float(known.mean()), float(known.std(correction=0)) or 1.0
    scaled = [None if one is None else ((one.double() - mean) / std).float() for one in (target.y, unseen)]
    assert scaled[0] is not None
    return Scale(mean, std), scaled[0], scaled[1]


def _moments(x: Array) -> tuple[Array, Array]:
    with np.errstate(over="ignore", invalid="ignore"):  # told as an error where they are used
        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    # Summing many equal numbers leaves a rounding error; dividing by it would blow up the next sample.
    is_constant = (x == x[:1]).all(axis=0)
    return np.where(is_constant, x[0].astype(np.float64), mean), np.where(is_constant | (std == 0), 1.0, std)


def _standardised(path: Path, x: Array, mean: Array, std: Array, name: str) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        standardised = ((x - mean) / std).astype(np.float32)
    if not (np.isfinite(standardised).all() and np.isfinite(std).all()):
        raise DataError(
            f"{path}: values of {name} are too large to be standardised (up to {np.abs(x).max():.3g}). Scale them."
        )
    return torch.from_numpy(standardised)
