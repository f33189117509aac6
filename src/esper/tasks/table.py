"""The user's own samples, from a text table: one sample per line, its label last."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from esper.contracts.errors import DataError
from esper.tasks.classification import Label, Labelled, classification
from esper.tasks.task import Task

DELIMITERS = (",", ";", "\t")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
MISSING_LABEL = frozenset({"", "nan"})
"""Not ``none``, say, which may well be a class."""

LOOKED_AT = 50


class _Line(NamedTuple):
    number: int
    cells: list[str]


def table(path: str | Path, seed: int) -> Task:
    """Build a classification task from a ``.csv`` file.

    Columns are parted by comma, semicolon (then numbers may have a decimal comma) or tab, and may be quoted. The first
    line may name them. A first column without a name, as pandas writes for its index, is left out. Labels may be whole
    numbers or text. 20 % of the samples become the test part; 20 % of the rest are held out; ``seed`` deals them.

    Raises:
        DataError: saying what is wrong with the file, in which line, and what would be right.
    """
    path = Path(path)
    text = _text(path)
    delimiter = max(DELIMITERS, key=lambda one: _score(text, one))
    lines, names = _without_header(_lines(path, text, delimiter), delimiter)
    first = 1 if len(names) > 2 and not names[0] else 0
    x = np.array([_numbers(path, line, names, first, delimiter) for line in lines], dtype=np.float64)
    y = _labels(path, lines, names[-1] if names else "the last column", delimiter)
    return classification(path, Labelled(x.reshape(len(lines), -1), y, ("the table", "its last column")), None, seed)


def _text(path: Path) -> str:
    if not path.exists():
        raise DataError(f"There is no file {path}. Give the path of a .csv file with one sample per line, label last.")
    if not path.is_file() or path.stat().st_size == 0:
        what = "empty" if path.is_file() else "not a file"
        raise DataError(f"{path} is {what}. It must hold one sample per line, its label last.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (at byte {error.start}). Store the table as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _rows(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _score(text: str, delimiter: str) -> tuple[bool, float, int]:
    """How well a delimiter explains the first lines: equally many columns, and numbers in all but the last."""
    try:
        rows = [row for row in itertools.islice(_rows(text, delimiter), LOOKED_AT) if row]
    except csv.Error:
        return False, 0.0, 0
    columns = len(rows[0]) if rows else 0
    cells = [cell for row in rows[1:] for cell in row[:-1]]
    share = sum(_number(cell, delimiter) is not None for cell in cells) / max(1, len(cells))
    return columns > 1 and all(len(row) == columns for row in rows), share, columns


def _lines(path: Path, text: str, delimiter: str) -> list[_Line]:
    """Lines that are not empty, all of equal length."""
    reader, lines = _rows(text, delimiter), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append(_Line(reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Check its quotes.") from error
    if not lines:
        raise DataError(f"{path} holds no lines. It must hold one sample per line, its label last.")
    columns = len(lines[0].cells)
    if columns < 2:
        raise DataError(
            f"{path} has one column only: {lines[0].cells[0][:40]!r}. Part features and label by comma, semicolon or "
            "tab."
        )
    for line in lines:
        if len(line.cells) != columns:
            raise DataError(
                f"{path}, line {line.number}: {len(line.cells)} columns, where the first line has {columns}. Give "
                "every sample as many, its label last."
            )
    return lines


def _without_header(lines: list[_Line], delimiter: str) -> tuple[list[_Line], list[str]]:
    """The lines that hold samples, and the names of the columns; none if the first line is a sample too."""
    first, *rest = lines
    is_named = all(_number(cell, delimiter) is None for cell in first.cells[:-1])
    names_label = _number(first.cells[-1], delimiter) is None and all(
        _number(line.cells[-1], delimiter) is not None for line in rest
    )
    index = {line.cells[0] for line in rest}
    names_columns_beside_index = not first.cells[0] and len(index) == len(rest) and all(map(str.isdigit, index))
    is_header = bool(rest) and (is_named or names_label or names_columns_beside_index)
    return (rest, first.cells) if is_header else (lines, [])


def _numbers(path: Path, line: _Line, names: Sequence[str], first: int, delimiter: str) -> list[float]:
    values = []
    for column, cell in enumerate(line.cells[first:-1], start=first):
        value = _number(cell, delimiter)
        if value is None or not math.isfinite(value):
            where = f"{path}, line {line.number}, column {column + 1}"
            name = f" ({names[column]!r})" if names else ""
            if cell.lower() in MISSING:
                raise DataError(f"{where}{name}: a value is missing. Fill it in or leave the line out.")
            raise DataError(
                f"{where}{name}: {cell[:40]!r} is no finite number. Encode every feature as a number; the label "
                "is last."
            )
        values.append(value)
    return values


def _labels(path: Path, lines: Sequence[_Line], name: str, delimiter: str) -> list[Label]:
    """Whole numbers if all of them are; else text, as it stands."""
    values = []
    for line in lines:
        if line.cells[-1].lower() in MISSING_LABEL:
            raise DataError(f"{path}, line {line.number}: the label is missing. Fill it in or leave the line out.")
        values.append(_number(line.cells[-1], delimiter))
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(lines):
        return [line.cells[-1] for line in lines]
    for line, value in zip(lines, numbers, strict=True):
        if not (math.isfinite(value) and value == math.floor(value) and abs(value) < 2**53):
            raise DataError(
                f"{path}, line {line.number}: {name} holds {line.cells[-1]}, which is no class. Labels must be whole "
                "numbers or text; predicting quantities is not supported."
            )
    return [int(value) for value in numbers]


def _number(cell: str, delimiter: str) -> float | None:
    """The number that a cell holds; None if it is something else."""
    try:
        return float(cell.replace(",", ".", 1) if delimiter == ";" else cell)
    except ValueError:
        return None
