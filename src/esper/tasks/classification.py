"""From numbers and labels, wherever they were read, to a task: classes, parts, standardised features."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import DataError
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task

TEST_SHARE = HELD_OUT_SHARE = 0.2
MIN_SAMPLES = 100
HIDDEN = 8

Array = np.ndarray[Any, np.dtype[Any]]
Label = int | str


class Labelled(NamedTuple):
    """Numbers ``x [n, ...]``, finite, with one label per sample; ``names`` is what a message calls the two."""

    x: Array
    y: list[Label]
    names: tuple[str, str]


def classification(path: Path, given: Labelled, unseen: Labelled | None, seed: int) -> Task:
    """Standardise by the training part, and deal.

    Without ``unseen``, 20 % of the samples become the test part; 20 % of the rest are held out. The host is an MLP
    features-8-8-classes, wider where there are more than 16 classes.

    Args:
        path: of the file, for messages; its stem names the task.
        given: samples to learn and judge from.
        unseen: samples of the test part.
        seed: deals the samples.

    Raises:
        DataError: saying what is wrong with the file, and what would be right.
    """
    _check_lengths(path, given, MIN_SAMPLES)
    classes = _classes(path, given)
    index = {label: code for code, label in enumerate(classes)}
    codes = torch.tensor([index[label] for label in given.y])
    rest = _order(codes, seed)
    if unseen is not None:
        _check_unseen(path, given, unseen)
        x_test, test_codes = unseen.x, torch.tensor([index[label] for label in unseen.y])
    else:
        test, rest = rest.split([round(TEST_SHARE * len(rest)), len(rest) - round(TEST_SHARE * len(rest))])
        x_test, test_codes = given.x[test.numpy()], codes[test]
    held_out, train = rest.split([round(HELD_OUT_SHARE * len(rest)), len(rest) - round(HELD_OUT_SHARE * len(rest))])

    flat, flat_test = given.x.reshape(len(given.x), -1), x_test.reshape(len(x_test), -1)
    mean, std = _moments(flat[train.numpy()])
    x_all, x_unknown = (_standardised(path, part, mean, std, given.names[0]) for part in (flat, flat_test))
    hidden = max(HIDDEN, len(classes) // 2)
    return Task(
        name=path.stem,
        train=Samples(x_all[train], codes[train]),
        held_out=Samples(x_all[held_out], codes[held_out]),
        test=Samples(x_unknown, test_codes),
        make_host=MLPHost((flat.shape[1], hidden, hidden, len(classes))),
        labels=tuple(str(label) for label in classes),
        shape=given.x.shape[1:],
        mean=torch.from_numpy(mean).float(),
        std=torch.from_numpy(std).float(),
    )


def _check_lengths(path: Path, samples: Labelled, least: int) -> None:
    x, y = samples.names
    if len(samples.x) != len(samples.y):
        raise DataError(
            f"{path}: {x} has {len(samples.x)} samples but {y} has {len(samples.y)}. Store one label per sample."
        )
    if len(samples.x) < least:
        raise DataError(f"{path}: {x} has {len(samples.x)} samples; at least {least} are needed to train and to judge.")


def _check_unseen(path: Path, given: Labelled, unseen: Labelled) -> None:
    _check_lengths(path, unseen, 1)
    (x, y), (x_test, y_test) = given.names, unseen.names
    if unseen.x.shape[1:] != given.x.shape[1:]:
        raise DataError(
            f"{path}: samples of {x} have shape {given.x.shape[1:]}, those of {x_test} {unseen.x.shape[1:]}. Store "
            "both alike."
        )
    unknown = sorted({str(label) for label in set(unseen.y) - set(given.y)})
    if unknown:
        raise DataError(
            f"{path}: {y_test} holds labels that {y} does not: {', '.join(unknown[:5])}. A network cannot know classes "
            f"that it never saw; add such samples to {x} and {y}, or take them out of {x_test} and {y_test}."
        )


def _classes(path: Path, samples: Labelled) -> list[Label]:
    y, name = samples.y, samples.names[1]
    classes = sorted(set(y), key=lambda label: (isinstance(label, str), label))
    if len(classes) == 1:
        raise DataError(
            f"{path}: all {len(y)} labels are {classes[0]!r}. To tell classes apart, {name} must hold two or more."
        )
    if len(classes) > len(y) // 2:
        raise DataError(
            f"{path}: {name} holds {len(classes)} different labels in {len(y)} samples, so they are no classes. There "
            "must be at least two samples per class on average; predicting quantities is not supported."
        )
    return classes


def _order(codes: Tensor, seed: int) -> Tensor:
    """A random order with one sample of every class at its end, where the training part is taken from."""
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    is_last = torch.zeros(len(codes), dtype=torch.bool)
    is_last[torch.from_numpy(np.unique(codes[order].numpy(), return_index=True)[1])] = True
    return torch.cat([order[~is_last], order[is_last]])


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
