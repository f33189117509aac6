"""The user's own samples, from a NumPy archive with ``x``, ``y`` and optionally ``x_test``, ``y_test``."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import DataError, closest
from esper.tasks.mlp import MLPHost
from esper.tasks.task import Samples, Task

TEST_SHARE = HELD_OUT_SHARE = 0.2
MIN_SAMPLES = 100
HIDDEN = 8

Array = np.ndarray[Any, np.dtype[Any]]


def npz(path: str | Path, seed: int) -> Task:
    """Build a classification task from an archive.

    Samples of any shape are flattened and standardised by the training part. Labels may be whole numbers or text.
    Without ``x_test``, 20 % become the test part; 20 % of the rest are held out. ``seed`` deals the samples. The host
    is an MLP features-8-8-classes, wider where there are more than 16 classes.

    Raises:
        DataError: saying what is wrong with the file, and what would be right.
    """
    path = Path(path)
    arrays = _read(path)
    x, y = _features(path, arrays, "x"), _labels(path, arrays, "y")
    _check_lengths(path, x, y, "", MIN_SAMPLES)
    classes = _classes(path, y)
    index = {label: code for code, label in enumerate(classes)}
    codes = torch.tensor([index[label] for label in y])
    order = _order(codes, len(classes), seed)

    if "x_test" in arrays or "y_test" in arrays:
        x_test, y_test = _features(path, arrays, "x_test"), _labels(path, arrays, "y_test")
        _check_lengths(path, x_test, y_test, "_test", 1)
        if x_test.shape[1:] != x.shape[1:]:
            raise DataError(
                f"{path}: samples of x have shape {x.shape[1:]}, those of x_test {x_test.shape[1:]}. Store both alike."
            )
        unseen = sorted({str(label) for label in y_test if label not in index})
        if unseen:
            raise DataError(
                f"{path}: y_test holds labels that y does not: {', '.join(unseen[:5])}. A network cannot know classes "
                "that it never saw; add such samples to x and y, or take them out of x_test and y_test."
            )
        test_codes = torch.tensor([index[label] for label in y_test])
        rest = order
    else:
        num_test = round(TEST_SHARE * len(x))
        x_test, test_codes = x[order[:num_test].numpy()], codes[order[:num_test]]
        rest = order[num_test:]
    held_out, train = rest.split([round(HELD_OUT_SHARE * len(rest)), len(rest) - round(HELD_OUT_SHARE * len(rest))])

    flat, flat_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    mean, std = _moments(flat[train.numpy()])
    x_all, x_unknown = (_standardised(path, part, mean, std) for part in (flat, flat_test))
    hidden = max(HIDDEN, len(classes) // 2)
    return Task(
        name=path.stem,
        train=Samples(x_all[train], codes[train]),
        held_out=Samples(x_all[held_out], codes[held_out]),
        test=Samples(x_unknown, test_codes),
        make_host=MLPHost((flat.shape[1], hidden, hidden, len(classes))),
        labels=tuple(str(label) for label in classes),
        mean=torch.from_numpy(mean).float(),
        std=torch.from_numpy(std).float(),
    )


def _read(path: Path) -> dict[str, Array]:
    if not path.exists():
        raise DataError(f"There is no file {path}. Give the path of an .npz file that holds x and y.")
    if not path.is_file() or path.stat().st_size == 0:
        what = "empty" if path.is_file() else "not a file"
        raise DataError(f"{path} is {what}. Write it with numpy.savez({path.name!r}, x=x, y=y).")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz archive. Write it with numpy.savez({path.name!r}, x=x, y=y).")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = set(archive.files)
            for name in ("x", "y"):
                if name not in names:
                    raise DataError(
                        f"{path} holds no array {name!r}. It needs x and y, and may have x_test and y_test. "
                        f"{closest(name, names)}"
                    )
            for name, other in (("x_test", "y_test"), ("y_test", "x_test")):
                if name in names and other not in names:
                    raise DataError(f"{path} holds {name!r} without {other!r}. Store both or neither.")
            return {name: _array(path, archive, name) for name in ("x", "y", "x_test", "y_test") if name in names}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}). It may be cut short; write or copy it again.") from error


def _array(path: Path, archive: Mapping[str, Array], name: str) -> Array:
    try:
        array = archive[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise DataError(f"{path}: {name} is no NumPy array ({error}). Write the file with numpy.savez.") from error
        raise DataError(
            f"{path}: {name} holds Python objects instead of plain values, as happens when rows differ in length. "
            "Give all samples the same shape, in one array of numbers (labels: numbers or text)."
        ) from error
    if not isinstance(array, np.ndarray):  # what is no array is handed out as bytes
        raise DataError(f"{path}: {name} is no NumPy array. Write the file with numpy.savez.")
    if array.ndim == 0:
        raise DataError(f"{path}: {name} is a single value. It must have one entry per sample.")
    return array


def _features(path: Path, arrays: Mapping[str, Array], name: str) -> Array:
    x = arrays[name]
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} is of type {x.dtype}, not of numbers. Encode every feature as a real number.")
    if 0 in x.shape[1:]:
        raise DataError(f"{path}: {name} has shape {x.shape}, so its samples have no features.")
    bad = ~np.isfinite(x.reshape(len(x), -1)).all(axis=1) if len(x) else np.zeros(0, dtype=bool)
    if bad.any():
        raise DataError(
            f"{path}: {name} holds NaN or infinite values in {int(bad.sum())} of {len(x)} samples, first in sample "
            f"{int(bad.argmax())}. Fill them in or leave those samples out."
        )
    return x


def _labels(path: Path, arrays: Mapping[str, Array], name: str) -> list[int | str]:
    y = arrays[name]
    if y.ndim > 1 and y.shape[1:] != (1,):
        raise DataError(
            f"{path}: {name} has shape {y.shape}. It must hold one label per sample; of one-hot rows take "
            f"{name}.argmax(axis=1)."
        )
    y = y.reshape(-1)
    if y.dtype.kind == "f":
        broken = ~(np.isfinite(y) & (y == np.floor(y)) & (np.abs(y) < 2**53))
        if broken.any():
            raise DataError(
                f"{path}: {name} holds {y[broken][0]!s}, which is no class. Labels must be whole numbers or text; "
                "predicting quantities is not supported."
            )
        y = y.astype(np.int64)
    if y.dtype.kind == "S":
        return [label.decode(errors="replace") for label in y.tolist()]
    if y.dtype.kind not in "biuU":
        raise DataError(f"{path}: {name} is of type {y.dtype}. Labels must be whole numbers or text.")
    return [label if isinstance(label, str) else int(label) for label in y.tolist()]


def _check_lengths(path: Path, x: Array, y: list[int | str], suffix: str, least: int) -> None:
    if len(x) != len(y):
        raise DataError(
            f"{path}: x{suffix} has {len(x)} samples but y{suffix} has {len(y)}. Store one label per sample."
        )
    if len(x) < least:
        raise DataError(f"{path}: x{suffix} has {len(x)} samples; at least {least} are needed to train and to judge.")


def _classes(path: Path, y: list[int | str]) -> list[int | str]:
    classes = sorted(set(y), key=lambda label: (isinstance(label, str), label))
    if len(classes) == 1:
        raise DataError(
            f"{path}: all {len(y)} labels are {classes[0]!r}. To tell classes apart, y must hold two or more."
        )
    if len(classes) > len(y) // 2:
        raise DataError(
            f"{path}: y holds {len(classes)} different labels in {len(y)} samples, so they are no classes. There must "
            "be at least two samples per class on average; predicting quantities is not supported."
        )
    return classes


def _order(codes: Tensor, num_classes: int, seed: int) -> Tensor:
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


def _standardised(path: Path, x: Array, mean: Array, std: Array) -> Tensor:
    with np.errstate(over="ignore", invalid="ignore"):
        standardised = ((x - mean) / std).astype(np.float32)
    if not (np.isfinite(standardised).all() and np.isfinite(std).all()):
        raise DataError(
            f"{path}: values of x are too large to be standardised (up to {np.abs(x).max():.3g}). Scale them."
        )
    return torch.from_numpy(standardised)
