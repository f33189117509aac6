"""Columns of a table as features: numbers, categories as one column a level, what is missing told beside it.

All that is fitted (the filling, the levels) is fitted on the training part alone.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from esper.contracts.errors import DataError
from esper.tasks.cells import Array, Marks, is_date, is_in_brackets, is_measure, is_missing, is_number
from esper.tasks.table_file import Cells

MOST_LEVELS = 32
RARE = 0.01
"""Levels with a smaller share of the training part are one."""

ODD = 0.02
"""A smaller share of cells that are no numbers are mistakes; a larger one makes the column a category."""

FEW_WORDS = 5
"""So few texts among many different numbers are no codes, but another way to say that a number is missing."""

MISSING_LEVEL, OTHER_LEVEL = "missing", "other"
_COUNTER = re.compile(r"(?i:id|index|row|unnamed: 0|(?:.*[_ ])id)|.*[a-z]I[dD]")


class Encoded(NamedTuple):
    """Features of all rows, float64 ``[n, features]``, with their names, and how each column was encoded."""

    x: Array
    names: tuple[str, ...]
    columns: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Number:
    """A column of numbers, NaN where one is missing; those are filled with the median, and told by a second column."""

    name: str
    values: Array

    def encode(self, train: Array) -> Encoded:
        """Fit on the rows ``train``, encode all."""
        is_gap = np.isnan(self.values)
        known = self.values[train][~is_gap[train]]
        fill = float(np.median(known)) if len(known) else 0.0
        told: dict[str, Any] = {"name": self.name, "kind": "number"}
        x = np.where(is_gap, fill, self.values)[:, None]
        if not is_gap.any():
            return Encoded(x, (self.name,), (told,))
        names = (self.name, f"{self.name} is missing")
        return Encoded(np.column_stack([x, is_gap]), names, (told | {"fill": fill},))


@dataclass(frozen=True)
class Category:
    """A column of texts: one feature a level, rare levels and those that training never saw together."""

    name: str
    cells: Sequence[str]

    def encode(self, train: Array) -> Encoded:
        """Fit on the rows ``train``, encode all."""
        cells = [MISSING_LEVEL if is_missing(cell) else cell for cell in self.cells]
        counts = Counter(cells[row] for row in train)
        usual = [level for level, count in counts.most_common(MOST_LEVELS) if count >= RARE * len(train)]
        levels = sorted(usual)
        place = {level: index for index, level in enumerate(levels)}
        places = np.array([place.get(cell, len(levels)) for cell in cells])
        x = np.zeros((len(cells), len(levels) + 1))
        x[np.arange(len(cells)), places] = 1
        has_other = bool(x[:, -1].any())
        if not has_other:
            x = x[:, :-1]
        names = tuple(f"{self.name} is {level}" for level in [*levels, OTHER_LEVEL][: x.shape[1]])
        return Encoded(x, names, ({"name": self.name, "kind": "category", "levels": levels, "has_other": has_other},))


@dataclass(frozen=True)
class Columns:
    """Features of a table.

    Args:
        kept: those that are learned from.
        told: what was decided about some of them, a sentence each.
    """

    kept: tuple[Number | Category, ...]
    told: tuple[str, ...]

    def encode(self, train: Array) -> Encoded:
        """Fit on the rows ``train``, encode all."""
        parts = [one.encode(train) for one in self.kept]
        names = (name for part in parts for name in part.names)
        columns = (column for part in parts for column in part.columns)
        return Encoded(np.concatenate([part.x for part in parts], axis=1), tuple(names), tuple(columns))

    def __str__(self) -> str:
        counts = (("numeric feature", Number), ("categorical feature", Category))
        found = ((sum(isinstance(one, kind) for one in self.kept), name) for name, kind in counts)
        return " and ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in found if count)


def columns_of(table: Cells, indices: Sequence[int], marks: Marks) -> Columns:
    """Decide what each column is.

    Args:
        table: as read.
        indices: of the columns that are features.
        marks: how the file writes its numbers.

    Raises:
        DataError: naming the column, or the cell, that cannot be used.
    """
    kept, left_out, filled = list[Number | Category](), list(table.left_out), list[str]()
    for index in indices:
        cells, name = table.columns[index], table.name(index)
        if all(map(is_missing, cells)):
            left_out.append(f"{name!r} (it is empty)")
            continue
        values = _numbers(table, index, marks)
        gaps = sum(map(is_missing, cells))
        if values is not None and _COUNTER.fullmatch(name) and table.names and _counts_rows(values):
            left_out.append(f"{name!r} (another whole number in every row)")
        elif values is not None:
            kept.append(Number(name, values))
            filled += [f"{gaps:,} of {name!r}"] if gaps else []
        elif _is_free_text(cells):
            left_out.append(f"{name!r} (another text in nearly every row)")
        else:
            kept.append(Category(name, cells))
    if not kept:
        raise DataError(f"{table.path} has no column that can be learned from: {', '.join(left_out)} left out.")
    told = [f"missing values are filled with the training part's median and told beside it: {', '.join(filled)}"]
    told = told * bool(filled) + [f"left out: {', '.join(left_out)}"] * bool(left_out)
    return Columns(tuple(kept), tuple(told))


def _numbers(table: Cells, index: int, marks: Marks) -> Array | None:
    """The numbers of a column, None if it is a category."""
    cells, name = table.columns[index], table.name(index)
    try:
        values = marks.numbers(cells)
    except ValueError as error:
        raise DataError(
            f"{table.path}: {name!r} holds {str(error)!r}, which is one number with a decimal point and another with a "
            "decimal comma. Write its numbers with a point, and without signs between thousands."
        ) from error
    if values is not None:
        if np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            raise DataError(f"{table.where(row, index)}: {cells[row][:40]!r} is too large. Scale the column.")
        return values
    rest = [row for row, cell in enumerate(cells) if not (is_missing(cell) or is_number(cell))]
    present = sum(not is_missing(cell) for cell in cells)
    if not rest:
        raise DataError(
            f"{table.path}: {name!r} has numbers with a decimal comma beside others with a decimal point. Write all of "
            "them with a point."
        )
    first = rest[0]
    if sum(is_date(cells[row]) for row in rest) > len(rest) / 2:
        raise DataError(
            f"{table.where(first, index)}: {cells[first][:40]!r} is a date or a time. Write what matters of it as a "
            "number (days since a day, the month, the hour), or leave the column out."
        )
    if all(is_in_brackets(cells[row]) for row in rest):
        raise DataError(
            f"{table.where(first, index)}: {cells[first][:40]!r} is a number in brackets. Write it with a minus sign "
            "if it is below zero, else without brackets."
        )
    if len(set(cells)) > MOST_LEVELS and all(is_measure(cells[row]) for row in rest):
        raise DataError(
            f"{table.where(first, index)}: {cells[first][:40]!r} is a number with something beside it. Write the "
            "number alone, or leave the column out."
        )
    is_odd = len({cells[row] for row in rest}) <= FEW_WORDS and len(set(cells)) > MOST_LEVELS
    if len(rest) < max(ODD * present, 2) or (is_odd and len(rest) < present / 2):
        raise DataError(
            f"{table.where(first, index)}: {cells[first][:40]!r} is no finite number, as others of its column are. "
            "Write a number, or leave the cell empty; it is then filled in."
        )
    return None


def _is_free_text(cells: Sequence[str]) -> bool:
    counts = Counter(cell for cell in cells if not is_missing(cell))
    is_varied = len(counts) > max(MOST_LEVELS, counts.total() / 2)
    return is_varied or max(counts.values()) < RARE * counts.total()


def _counts_rows(values: Array) -> bool:
    return bool((values == np.floor(values)).all()) and len(np.unique(values)) == len(values)
