"""What is to be predicted: classes, a quantity, or several labels that are each there or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import DataError
from esper.tasks.cells import Array

Kind = Literal["classification", "regression", "multilabel"]
Wanted = Literal["auto", "classification", "regression"]
Label = int | str

FEW = 20
"""Up to so many different whole numbers are classes unless told otherwise, and more than so many others a quantity."""

PER_CLASS = 10
"""In an archive, numbers that are whole by type are classes too if each comes so often on average."""


@dataclass(frozen=True)
class Target:
    """What is to be predicted, of every sample.

    Args:
        kind: of the task.
        y: int64 ``[n]`` codes of classes; float64 ``[n]``, a quantity in its own units; or float32 ``[n, labels]`` of 0
            and 1.
        outputs: names of the classes or labels, or of the one quantity.
        name: what a message calls it.
    """

    kind: Kind
    y: Tensor
    outputs: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        if self.kind == "multilabel":
            return f"{len(self.outputs)} labels ({', '.join(self.outputs[:5])}{', ...' * (len(self.outputs) > 5)})"
        return f"target {self.name!r}" + (f" ({len(self.outputs)} classes)" if self.kind == "classification" else "")

    def rare(self) -> Tensor:
        """int64 ``[n]``: samples of one number are alike; of each number at least one must be trained on."""
        if self.kind == "classification":
            return self.y
        return self.y.argmax(1) if self.kind == "multilabel" else torch.zeros(len(self.y), dtype=torch.int64)


def is_quantity(where: str, values: Array, wanted: Wanted, few: int = FEW) -> bool:
    """Whether numbers are a quantity, and no codes of classes.

    Args:
        where: the file and what it calls the target, for messages.
        values: float64 ``[n]``, finite.
        wanted: what the user says it is.
        few: up to so many different whole numbers are classes.

    Raises:
        DataError: if only the user can tell.
    """
    if wanted != "auto":
        return wanted == "regression"
    different, is_whole = len(np.unique(values)), bool((values == np.floor(values)).all())
    if different == 1 or is_whole == (different <= (few if is_whole else FEW)):
        return not is_whole
    what = "whole numbers" if is_whole else "numbers, not all of them whole"
    raise DataError(
        f"{where} holds {different} different {what}: they may be classes or a quantity. Say --task classification or "
        "--task regression."
    )


def quantity(where: str, values: Array, name: str) -> Target:
    """A target of numbers that differ.

    Raises:
        DataError: if all are the same, or too large.
    """
    if (values == values[:1]).all():
        what = f"constant: {values[0]:g} in all {len(values)} samples" if len(values) else "empty"
        raise DataError(f"{where} is {what}. There is nothing to predict.")
    with np.errstate(over="ignore"):
        if not np.isfinite(values.std()):
            raise DataError(f"{where} is too large to be standardised (up to {np.abs(values).max():.3g}). Scale it.")
    return Target("regression", torch.from_numpy(values.astype(np.float64)), (name,), name)


def classes(where: str, values: Sequence[Label], name: str, names: Sequence[str] = ()) -> Target:
    """A target of labels.

    Args:
        where: the file and what it calls the target, for messages.
        values: whole numbers or texts.
        name: of the target.
        names: of the codes 0, 1, ..., where the file tells them.

    Raises:
        DataError: if they are no classes.
    """
    found = sorted(set(values), key=lambda label: (isinstance(label, str), label))
    if len(found) == 1:
        raise DataError(
            f"{where} is constant: all {len(values)} labels are {found[0]!r}. There must be two or more to tell apart."
        )
    if len(found) > len(values) // 2:
        raise DataError(
            f"{where} holds {len(found)} different labels in {len(values)} samples, so they are no classes. There must "
            "be at least two samples per class on average; a quantity must be numbers throughout."
        )
    index = {label: code for code, label in enumerate(found)}
    is_named = found == list(range(len(names)))
    outputs = tuple(names) if is_named else tuple(str(label) for label in found)
    return Target("classification", torch.tensor([index[label] for label in values]), outputs, name)


def several(where: str, values: Array, names: Sequence[str]) -> Target:
    """A target of several labels, each 0 or 1.

    Args:
        where: the file and what it calls the target, for messages.
        values: ``[n, labels]``.
        names: of the labels.

    Raises:
        DataError: if one of them is something else, or the same everywhere.
    """
    if not np.isin(values, (0, 1)).all():
        odd = values[~np.isin(values, (0, 1))][0]
        raise DataError(f"{where} holds {odd:g}. Of several labels each must be 0 or 1; one target may be anything.")
    constant = [name for name, column in zip(names, values.T, strict=True) if (column == column[:1]).all()]
    if constant:
        raise DataError(f"{where}: {constant[0]!r} is the same in all {len(values)} samples. Leave it out.")
    return Target("multilabel", torch.from_numpy(values.astype(np.float32)), tuple(names), ", ".join(names))
