"""What the text of a table's cell is: a number, a date, or nothing; and how a column writes its numbers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Mark = Literal["point", "comma"]
"""Which sign stands before the decimals; the other one may part thousands."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
_PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?", re.ASCII)
_LAKHS = re.compile(r"[+-]?[1-9]\d?(?:,\d{2})+,\d{3}(?:\.\d*)?", re.ASCII)
_ONLY_PLAIN_SIGNS = re.compile(r"[0-9.eE+\-\n]*")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)
_WHOLE_WITH_POINT = re.compile(r"-?(?:0|[1-9]\d*)[.,]0+", re.ASCII)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    r"\d{4}[-/._]\d{1,2}(?:[-/._]\d{1,2})?(?:[T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}(?:[T ].*)?"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?(?: ?[ap]m)?|\d{1,2}[- ][a-z]{3,9}[- ]\d{2,4}|[a-z]{3,9} \d{1,2}, \d{4}"
    rf"|{_MONTH}[- ]\d{{1,2}},?[- ]\d{{4}}(?: .*)?|{_MONTH}[- ]\d{{2,4}}|\d{{4}}[- ]{_MONTH}(?:[- ]\d{{1,2}})?"
    r"|(?:19|20)\d{2}[-/ ]?(?:Q[1-4]|W[0-5]?\d)|(?:Q[1-4]|W[0-5]?\d)[-/ ]?(?:19|20)\d{2}",
    re.ASCII | re.IGNORECASE,
)
_MEASURE = re.compile(
    r"(?:[$€£] ?)?[+-]?(?:\d{1,3}(?:[., '\u00a0\u202f]\d{3})+|\d+)(?:[.,]\d+)?(?: ?(?:[$€£%°]|[a-zA-Z]{1,3}))?"
)
_IN_BRACKETS = re.compile(r"\([$€£]?[\d.,]*\d[\d.,]*\)", re.ASCII)
_SWAP = str.maketrans(",.", ".,")
_MINUS = "\N{MINUS SIGN}"
"""What word processors and reports write for a hyphen before a number."""


def is_missing(cell: str) -> bool:
    """Whether nothing was measured there."""
    return cell.lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether it is a number, whichever sign stands before its decimals."""
    return _value(cell, "point") is not None or _value(cell, "comma") is not None


def is_date(cell: str) -> bool:
    """Whether it is a date, a month or a time of day."""
    return _DATE.fullmatch(cell) is not None


def is_measure(cell: str) -> bool:
    """Whether it is a number with a unit, a currency or blanks between thousands."""
    return _MEASURE.fullmatch(cell) is not None


def is_in_brackets(cell: str) -> bool:
    """Whether it is a number in brackets, which in accounts is below zero."""
    return _IN_BRACKETS.fullmatch(cell) is not None


def readings(cells: Sequence[str]) -> dict[Mark, Array]:
    """The numbers of a column by each mark that explains all of its cells, float64, NaN where one is missing.

    One reading only where both give the same numbers; none if a cell is something else.
    """
    marks: tuple[Mark, ...] = ("point", "comma") if _has_marks(cells) else ("point",)
    found = {mark: values for mark in marks if (values := _values(cells, mark)) is not None}
    if len(found) == 2 and np.array_equal(found["point"], found["comma"], equal_nan=True):
        del found["comma"]
    return found


@dataclass(frozen=True)
class Marks:
    """How a file writes its numbers.

    Args:
        seen: marks by which some column can only be read.
        is_comma_likely: whether a point is no sign of decimals by itself, as where semicolons part the columns.
    """

    seen: frozenset[Mark]
    is_comma_likely: bool = False

    def numbers(self, cells: Sequence[str]) -> Array | None:
        """The numbers of a column; None if they are no numbers.

        Raises:
            ValueError: with a cell that could be either of two numbers, such as ``1.234``.
        """
        found = readings(cells)
        if len(found) < 2:
            return next(iter(found.values()), None)
        if len(self.seen) == 1:
            return found[next(iter(self.seen))]
        if self.seen or self.is_comma_likely or any("," in cell for cell in cells):
            raise ValueError(next(cell for cell in cells if "," in cell or "." in cell))
        return found["point"]


def marks_of(columns: Iterable[Sequence[str]], *, is_comma_likely: bool) -> Marks:
    """How a file with these columns writes its numbers."""
    marked = (readings(cells) for cells in columns if _has_marks(cells))
    return Marks(frozenset(next(iter(found)) for found in marked if len(found) == 1), is_comma_likely)


def codes(cells: Sequence[str]) -> list[int] | None:
    """Whole numbers if all cells are, each written in the one plain way; else None: ``1E1`` and ``10`` differ."""
    cells = [cell.replace(_MINUS, "-") for cell in cells]
    for pattern in (_WHOLE, _WHOLE_WITH_POINT):
        if all(pattern.fullmatch(cell) for cell in cells):
            return [int(re.split("[.,]", cell)[0]) for cell in cells]
    return None


def _has_marks(cells: Sequence[str]) -> bool:
    text = "\n".join(cells)
    return "," in text or "." in text


def _values(cells: Sequence[str], mark: Mark) -> Array | None:
    if mark == "point" and "" not in cells and _ONLY_PLAIN_SIGNS.fullmatch("\n".join(cells)):
        try:
            return np.array(cells, dtype=np.float64)  # the same numbers, much faster
        except ValueError:
            return None
    values = []
    for cell in cells:
        value = np.nan if is_missing(cell) else _value(cell, mark)
        if value is None:
            return None
        values.append(value)
    return np.array(values, dtype=np.float64)


def _value(cell: str, mark: Mark) -> float | None:
    cell = cell.replace(_MINUS, "-")
    text = cell.translate(_SWAP) if mark == "comma" else cell
    if _GROUPED.fullmatch(text) or (mark == "point" and _LAKHS.fullmatch(text)):
        return float(text.replace(",", ""))
    return float(text) if _PLAIN.fullmatch(text) else None
