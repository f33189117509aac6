"""The user's own samples, from a table: one sample per row, what is to be predicted in one column or several."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esper.contracts.errors import DataError, closest
from esper.tasks.cells import Marks, codes, is_date, is_missing, is_number, marks_of
from esper.tasks.columns import columns_of
from esper.tasks.dealing import check_enough, deal
from esper.tasks.table_file import LABEL_NAMES, Cells, read_cells
from esper.tasks.targets import FEW, Target, Wanted, classes, is_quantity, quantity, several
from esper.tasks.task import Task

MISSING_LABEL = frozenset({"", "nan"})
"""Not ``none``, say, which may well be a class."""


FLAGS = {"true": "1", "false": "0"}


def table(path: str | Path, seed: int, *, label: str | None = None, task: Wanted = "auto") -> Task:
    """Build a task from a ``.csv``, ``.tsv``, ``.txt`` (each also ``.gz``) or ``.parquet`` file.

    Numbers are features as they are, texts become one feature a level, and what is missing is filled in and told by a
    feature of its own. A first column without a name, a counter of rows, and texts that differ in nearly every row are
    left out. 20 % of the samples become the test part; 20 % of the rest are held out; ``seed`` deals them.

    Args:
        path: of the file.
        seed: deals the samples.
        label: name or number (from 0, or from -1 backwards) of the column to predict; several with commas between hold
            0 or 1 each. None takes the one column that is called label, target, class or y, else the last.
        task: whether the label is a class or a quantity; ``"auto"`` tells by its values.

    Raises:
        DataError: saying what is wrong with the file, in which line, and what would be right.
    """
    path = Path(path)
    cells = read_cells(path)
    chosen = _labels(cells, label)
    check_enough(path, "the table", len(cells.lines))
    features = [index for index in range(len(cells.columns)) if index not in chosen]
    if len(chosen) > 1 and task != "auto":
        raise DataError(
            f"{path}: --task {task} is for one label, and --label {label} names {len(chosen)}. Leave it out."
        )
    if not features:
        raise DataError(f"{path}: --label takes all columns, and leaves none to learn from.")
    marks = marks_of(cells.columns, is_comma_likely=cells.has_semicolons)
    target = _flags(cells, chosen) if len(chosen) > 1 else _target(cells, chosen[0], marks, task)
    columns = columns_of(cells, features, marks)
    told = f"{target.kind}: {len(cells.lines):,} rows, {columns}, {target}"
    return deal(path, columns.encode, target, seed, what="the table", told=(told, *columns.told))


def _labels(cells: Cells, label: str | None) -> list[int]:
    """Indices of the columns to predict."""
    if label is None:
        named = [index for index, name in enumerate(cells.names) if name.lower() in LABEL_NAMES]
        return named if len(named) == 1 else [len(cells.columns) - 1]
    wanted = [label] if label in cells.names else [one.strip() for one in label.split(",")]
    found = [_index(cells, one) for one in wanted]
    if len(set(found)) < len(found):
        raise DataError(f"--label {label} names a column twice.")
    return found


def _index(cells: Cells, name: str) -> int:
    count = len(cells.columns)
    if name in cells.names:
        if cells.names.count(name) > 1:
            raise DataError(f"{cells.path}: {cells.names.count(name)} columns are called {name!r}. Name them apart.")
        return cells.names.index(name)
    if name.removeprefix("-").isdecimal() and -count <= int(name) < count:
        return int(name) % count
    valid = cells.names or [str(index) for index in range(count)]
    raise DataError(f"{cells.path} has no column {name!r} for --label. {closest(name, valid)}")


def _target(cells: Cells, column: int, marks: Marks, task: Wanted) -> Target:
    texts, name = cells.columns[column], cells.name(column)
    where = f"{cells.path}: {name}"
    for row, text in enumerate(texts):
        if text.lower() in MISSING_LABEL:
            raise DataError(
                f"{cells.path}, line {cells.lines[row]}: the label is missing{f' ({text!r})' if text else ''}. Fill it "
                "in or leave the line out."
            )
    values = None
    if not any(map(is_missing, texts)):
        try:
            values = marks.numbers(texts)
        except ValueError as error:
            if task != "classification":
                raise DataError(
                    f"{where} holds {error}, which may be either of two numbers. Write it with a point."
                ) from error
    if values is None and task != "classification":
        odd = [row for row, text in enumerate(texts) if is_missing(text) or not is_number(text)]
        if not odd:
            raise DataError(f"{where} has decimals with a comma beside others with a point. Write all with a point.")
        dates = [row for row in odd if is_date(texts[row])]
        if len(dates) > len(texts) / 2:
            raise DataError(
                f"{cells.where(dates[0], column)}: {texts[dates[0]][:40]!r} is a date or a time. Write what is to be "
                "predicted as a number; if the column holds classes, say --task classification."
            )
        if task == "regression" or (len(odd) < len(texts) / 2 and len(set(texts)) > FEW):
            raise DataError(
                f"{cells.where(odd[0], column)}: {texts[odd[0]][:40]!r} is no number, and a quantity must be numbers. "
                "Correct it or leave the line out; if the column holds classes, say --task classification."
            )
    if values is not None and not np.isfinite(values).all():
        raise DataError(f"{where} holds a number that is too large. Scale it.")
    if values is not None and is_quantity(where, values, task):
        return quantity(where, values, name)
    return classes(where, codes(texts) or texts, name, cells.classes)


def _flags(cells: Cells, chosen: Sequence[int]) -> Target:
    """Several labels of 0 and 1."""
    columns = []
    for column in chosen:
        texts = [FLAGS.get(text.lower(), text) for text in cells.columns[column]]
        found = codes(texts)
        if found is None or not set(found) <= {0, 1}:
            row = next(row for row, text in enumerate(texts) if text not in ("0", "1"))
            raise DataError(
                f"{cells.where(row, column)}: {texts[row][:40]!r} is neither 0 nor 1. Of several labels each must be; "
                "one label may be anything."
            )
        columns.append(found)
    names = [cells.name(column) for column in chosen]
    return several(f"{cells.path}", np.array(columns).T, names)
