"""A text table or Parquet file as cells of text: which sign parts its columns, and what its first line is."""

import csv
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esper.contracts.errors import DataError
from esper.tasks.cells import is_missing, is_number

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet")
DELIMITERS = (";", "\t", "|", ",", r"\s+")
LOOKED_AT = 50
LABEL_NAMES = frozenset({"label", "labels", "target", "class", "y"})


@dataclass(frozen=True)
class Cells:
    """What a table holds, as text.

    Args:
        path: of the file, for messages.
        columns: the cells of every column, stripped.
        names: of the columns; empty if the file does not name them.
        lines: of the file, one for every row, from 1.
        classes: names of the label's codes, where the first line tells them.
        has_semicolons: whether they part the columns.
        first: number of the first column in the file, from 1.
        left_out: columns of the file that are not among them, each with the reason.
    """

    path: Path
    columns: list[list[str]]
    names: list[str]
    lines: Sequence[int]
    classes: tuple[str, ...] = ()
    has_semicolons: bool = False
    first: int = 1
    left_out: tuple[str, ...] = ()

    def where(self, row: int, column: int) -> str:
        """What a message calls a cell."""
        name = f" ({self.names[column]!r})" if self.names else ""
        return f"{self.path}, line {self.lines[row]}, column {column + self.first}{name}"

    def name(self, column: int) -> str:
        """What a column is called."""
        if not self.names or not self.names[column]:
            return f"column {column + self.first}"
        name = self.names[column]
        return name if self.names.count(name) == 1 else f"{name} (column {column + self.first})"


def read_cells(path: Path) -> Cells:
    """Read a table.

    Columns are parted by comma, semicolon, tab, bar or blanks, and may be quoted; the first line may name them, or, as
    in files of scikit-learn, tell how many rows and features there are and the names of the classes.

    Raises:
        DataError: saying what is wrong with the file, in which line, and what would be right.
    """
    if not path.exists():
        raise DataError(f"There is no file {path}. Give the path of a table with one sample per line.")
    if not path.is_file() or path.stat().st_size == 0:
        what = "empty" if path.is_file() else "not a file"
        raise DataError(f"{path} is {what}. It must hold one sample per line.")
    try:
        cells = _parquet(path) if path.suffix == ".parquet" else _text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (at byte {error.start}). Store the table as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}). It may be cut short; write or copy it again.") from error
    if len(cells.columns) < 2:
        first = next(iter(cells.columns[0]), "") if cells.columns else ""
        text = f" A text to learn is --data text:{path.name}." if path.suffix == ".txt" else ""
        raise DataError(
            f"{path} has one column only: {first[:40]!r}. Part features and label by comma, semicolon or tab.{text}"
        )
    return _without_index(cells)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise DataError(
            "Tables need pandas, which is not installed: pip install 'esper-morphogenetic[run]'."
        ) from error
    return pandas


def _parquet(path: Path) -> Cells:
    pandas = _pandas()
    try:
        frame = pandas.read_parquet(path)
    except (ImportError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise DataError(f"{path} cannot be read as Parquet ({error}). Write or copy it again.") from error
    columns = []
    for index in range(frame.shape[1]):
        column = frame.iloc[:, index].astype(object)
        columns.append(["" if pandas.api.types.is_scalar(v) and pandas.isna(v) else str(v).strip() for v in column])
    names, index = [str(name).strip() for name in frame.columns], frame.index.names
    is_told = index != [None] or not isinstance(frame.index, pandas.RangeIndex)
    left_out = [f"{name!r} (the file's index)" if name is not None else "the file's index" for name in index]
    return Cells(path, columns, names, range(1, len(frame) + 1), left_out=tuple(left_out * is_told))


def _text(path: Path) -> Cells:
    """The file as the delimiter explains it that leaves the cleanest cells."""
    delimiter = max(DELIMITERS, key=lambda one: _score(path, one))
    frame = _frame(path, delimiter, None)
    rows, lines, width = [], [], frame.shape[1]
    for line, row in enumerate(frame.to_numpy(dtype=object), start=1):
        cells = [cell.strip() for cell in row if isinstance(cell, str)]
        if any(cells):
            rows.append(cells)
            lines.append(line)
    if not rows:
        raise DataError(f"{path} holds no lines. It must hold one sample per line.")
    left_out: tuple[str, ...] = ()
    if width > 2 and all(len(row) == width and not row[-1] for row in rows):  # every line ends with a delimiter
        left_out = (f"column {width} (it is empty, and has no name)",)
        rows, width = [row[:-1] for row in rows], width - 1
    counts, is_semicolon = _counts(rows), delimiter == ";"
    for line, row in list(zip(lines, rows, strict=True))[counts is not None :]:
        if len(row) != width:
            raise DataError(
                f"{path}, line {line}: {len(row)} columns, where the first line has {width}. Give every sample as many."
            )
    told: dict[str, Any] = {"has_semicolons": is_semicolon, "left_out": left_out}
    if counts is not None:
        return Cells(path, _turned(rows[1:]), [], lines[1:], counts, **told)
    if _is_header(rows):
        return Cells(path, _turned(rows[1:]), rows[0], lines[1:], **told)
    return Cells(path, _turned(rows), [], lines, **told)


def _frame(path: Path, delimiter: str, rows: int | None) -> Any:
    """The file, or its first rows; a cell is NaN where a line is too short."""
    pandas = _pandas()
    how: dict[str, Any] = {
        **{"sep": delimiter, "header": None, "dtype": str, "keep_default_na": False, "skipinitialspace": True},
        **{"encoding": "utf-8-sig", "engine": "python"},
    }
    try:
        first = pandas.read_csv(path, **how, nrows=1)
        try:
            second = pandas.read_csv(path, **how, skiprows=1, nrows=1)
        except pandas.errors.EmptyDataError:
            second = first
        width = second.shape[1] if _tells_counts(first.iloc[0], second.shape[1]) else first.shape[1]
        return pandas.read_csv(path, **how, names=range(width), index_col=False, skip_blank_lines=False, nrows=rows)
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path} holds no lines. It must hold one sample per line.") from error
    except (pandas.errors.ParserError, csv.Error) as error:
        told = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        if told is None:
            raise DataError(f"{path}: {' '.join(str(error).split())}. Check its quotes.") from error
        raise DataError(
            f"{path}, line {told[2]}: {told[3]} columns, where the first line has {told[1]}. Give every sample as many."
        ) from error


def _score(path: Path, delimiter: str) -> tuple[bool, float, int]:
    """How well a delimiter explains the first lines: equally many columns, and cells without other delimiters."""
    try:
        frame = _frame(path, delimiter, LOOKED_AT)
    except DataError:
        return False, 0.5, 0  # a line of another length: better than whole lines in one cell
    rows = [[cell for cell in row if isinstance(cell, str)] for row in frame.to_numpy(dtype=object)]
    rows = [row for row in rows if any(row)]
    rows = rows[_counts(rows) is not None :]
    cells = [cell.strip() for row in rows for cell in row]
    clean = sum(is_number(cell) or not any(sign in cell for sign in ";\t|,") for cell in cells)
    is_even = frame.shape[1] > 1 and all(len(row) == frame.shape[1] for row in rows)
    return is_even, clean / max(1, len(cells)), frame.shape[1]


def _tells_counts(first: Sequence[Any], width: int) -> bool:
    cells = [cell for cell in first if isinstance(cell, str)]
    return len(cells) > 2 and cells[0].isdigit() and cells[1] == str(width - 1) and not any(map(is_number, cells[2:]))


def _counts(rows: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    """Names of the classes, if the first line tells how many rows and features there are."""
    if len(rows) < 2 or not _tells_counts(rows[0], len(rows[1])):
        return None
    return tuple(rows[0][2:]) if len(rows) <= LOOKED_AT or int(rows[0][0]) == len(rows) - 1 else None


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first line names the columns."""
    first, rest = rows[0], rows[1:]
    if not rest:
        return False
    columns = _turned(rest)
    names = [
        index
        for index, cell in enumerate(first)
        if cell and not is_number(cell) and all(is_number(one) or is_missing(one) for one in columns[index])
    ]
    if not any(is_number(cell) for cell in first[:-1]) and not any(map(is_missing, first[1:-1])):
        again = sum(cell in column for cell, column in zip(first, columns, strict=True))
        return bool(names) or again <= len(first) / 2  # else a sample of texts, whose levels come again
    if names == [len(first) - 1] or any(first[index].lower() in LABEL_NAMES for index in names):
        return True
    start = 0 if first[0] else 1
    if [*first[start:-1]] != [str(number) for number in range(len(first) - 1 - start)]:
        return False
    is_counted = not is_number(first[-1]) or first[-1] == str(len(first) - 1 - start)
    is_apart = start == 1 or len(first) >= 4 or any("." in cell for cell in columns[0])
    return is_counted and is_apart and list(first) not in [list(row) for row in rest]


def _without_index(cells: Cells) -> Cells:
    """A first column without a name, as pandas writes for its index, is left out."""
    if len(cells.names) < 3 or cells.names[0]:
        return cells
    left_out = ("column 1 (it has no name)", *cells.left_out)
    return replace(cells, columns=cells.columns[1:], names=cells.names[1:], first=2, left_out=left_out)


def _turned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)]
