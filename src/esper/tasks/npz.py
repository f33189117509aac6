"""The user's own samples, from a NumPy archive with ``x``, ``y`` and optionally ``x_test``, ``y_test``."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from esper.contracts.errors import DataError, closest
from esper.tasks.cells import Array
from esper.tasks.columns import Encoded
from esper.tasks.dealing import Unseen, check_enough, deal
from esper.tasks.targets import FEW, PER_CLASS, Label, Target, Wanted, classes, is_quantity, quantity, several
from esper.tasks.task import Task


def npz(path: str | Path, seed: int, *, task: Wanted = "auto") -> Task:
    """Build a task from an archive.

    Samples of any shape are flattened and standardised by the training part. Labels may be whole numbers or text, or
    numbers to predict as a quantity; ``y [n, labels]`` of 0 and 1 has several labels. Without ``x_test``, 20 % become
    the test part; 20 % of the rest are held out. ``seed`` deals the samples.

    Args:
        path: of the file.
        seed: deals the samples.
        task: whether ``y`` holds classes or a quantity; ``"auto"`` tells by its values.

    Raises:
        DataError: saying what is wrong with the file, and what would be right.
    """
    path = Path(path)
    arrays = _read(path)
    _check_lengths(path, arrays, "x", "y")
    check_enough(path, "x", len(arrays["x"]))
    x, target = _features(path, arrays, "x"), _target(path, arrays["y"], "y", task)
    unseen = None
    if "x_test" in arrays:
        _check_lengths(path, arrays, "x_test", "y_test")
        check_enough(path, "x_test", len(arrays["x_test"]), 1)
        unseen = _unseen(path, arrays, target)
    flat = x.reshape(len(x), -1)
    kinds = f"{flat.shape[1]:,} numeric feature{'s' * (flat.shape[1] != 1)}"
    told = f"{target.kind}: {len(x):,} samples, {kinds}, {target}"

    def encode(_: Array) -> Encoded:
        return Encoded(flat, (), ())

    return deal(path, encode, target, seed, what="x", shape=x.shape[1:], unseen=unseen, told=(told,))


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


def _target(path: Path, y: Array, name: str, task: Wanted) -> Target:
    """What ``y`` holds; its kind is that of ``task``, or told by its values."""
    where = f"{path}: {name}"
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biuf" and np.isin(y, (0, 1)).all() and len(y):
        if (y.sum(axis=1) == 1).all():
            raise DataError(
                f"{where} has shape {y.shape} with one 1 in each row. It must hold one label per sample; of one-hot "
                f"rows take {name}.argmax(axis=1)."
            )
        if task != "auto":
            raise DataError(f"{where} has shape {y.shape}, several labels, and --task {task} is for one. Leave it out.")
        return several(where, y, [f"label {index}" for index in range(y.shape[1])])
    if y.ndim > 1 and y.shape[1:] != (1,):
        raise DataError(
            f"{where} has shape {y.shape}. It must hold one label per sample, or several of 0 and 1; of one-hot rows "
            f"take {name}.argmax(axis=1)."
        )
    y = y.reshape(-1)
    if y.dtype.kind in "biuf":
        values = y.astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError(f"{where} holds {y[~np.isfinite(values)][0]!s}. Fill it in or leave those samples out.")
        few = max(FEW, len(values) // PER_CLASS) if y.dtype.kind in "iu" else FEW
        if (y.dtype.kind != "b" or task == "regression") and is_quantity(where, values, task, few):
            return quantity(where, values, name)
    elif task == "regression":
        raise DataError(f"{where} is of type {y.dtype}, and --task regression predicts numbers.")
    return classes(where, _labels(where, y), name)


def _labels(where: str, y: Array) -> list[Label]:
    """Labels of classes: whole numbers as such, all else as text."""
    if y.dtype.kind in "biuf":
        return [int(one) if one == one // 1 else str(one) for one in y.reshape(-1).tolist()]
    if y.dtype.kind not in "SU":
        raise DataError(f"{where} is of type {y.dtype}. Labels must be numbers or text.")
    if y.dtype.kind == "S":
        try:
            y = np.char.decode(y, "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} holds bytes that are no UTF-8 text. Store the labels as text.") from error
    is_gap = np.isin(np.char.lower(np.char.strip(y)), ("", "nan"))
    if is_gap.any():
        raise DataError(
            f"{where} is missing in {int(is_gap.sum())} of {len(y)} samples, first in sample {int(is_gap.argmax())}. "
            "Fill it in or leave those samples out."
        )
    return list(y.reshape(-1).tolist())


def _unseen(path: Path, arrays: Mapping[str, Array], target: Target) -> Unseen:
    """The test part that the file gives, by the codes of the target."""
    x, y = _features(path, arrays, "x_test"), arrays["y_test"]
    where = f"{path}: y_test"
    if x.shape[1:] != arrays["x"].shape[1:]:
        raise DataError(
            f"{path}: samples of x have shape {arrays['x'].shape[1:]}, those of x_test {x.shape[1:]}. Store both alike."
        )
    if target.kind == "classification":
        labels = [str(one) for one in _labels(where, y)]
        index = {label: code for code, label in enumerate(target.outputs)}
        unknown = sorted(set(labels) - set(index))
        if unknown:
            raise DataError(
                f"{where} holds labels that y does not: {', '.join(unknown[:5])}. A network cannot know classes that "
                "it never saw; add such samples to x and y, or take them out of x_test and y_test."
            )
        return Unseen(x.reshape(len(x), -1), torch.tensor([index[label] for label in labels]))
    if y.shape[1:] != arrays["y"].shape[1:] or y.dtype.kind not in "biuf" or not np.isfinite(y).all():
        raise DataError(f"{where} is not of the kind of y. Store both alike.")
    if target.kind == "multilabel":
        return Unseen(x.reshape(len(x), -1), torch.from_numpy(y.astype(np.float32)))
    return Unseen(x.reshape(len(x), -1), torch.from_numpy(y.reshape(-1).astype(np.float64)))


def _check_lengths(path: Path, arrays: Mapping[str, Array], x: str, y: str) -> None:
    if len(arrays[x]) != len(arrays[y]):
        raise DataError(
            f"{path}: {x} has {len(arrays[x])} samples but {y} has {len(arrays[y])}. Store one label per sample."
        )
