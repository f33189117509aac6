"""The user's own samples, from a NumPy archive with ``x``, ``y`` and optionally ``x_test``, ``y_test``."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from esper.contracts.errors import DataError, closest
from esper.tasks.classification import Array, Label, Labelled, classification
from esper.tasks.task import Task


def npz(path: str | Path, seed: int) -> Task:
    """Build a classification task from an archive.

    Samples of any shape are flattened and standardised by the training part. Labels may be whole numbers or text.
    Without ``x_test``, 20 % become the test part; 20 % of the rest are held out. ``seed`` deals the samples.

    Raises:
        DataError: saying what is wrong with the file, and what would be right.
    """
    path = Path(path)
    arrays = _read(path)
    given = Labelled(_features(path, arrays, "x"), _labels(path, arrays, "y"), ("x", "y"))
    unseen = None
    if "x_test" in arrays:
        x_test, y_test = _features(path, arrays, "x_test"), _labels(path, arrays, "y_test")
        unseen = Labelled(x_test, y_test, ("x_test", "y_test"))
    return classification(path, given, unseen, seed)


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


def _labels(path: Path, arrays: Mapping[str, Array], name: str) -> list[Label]:
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
