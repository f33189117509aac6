"""Text tables: header or not, whichever delimiter, and one clear message for what cannot be used."""

import numpy as np
import pytest
import torch

from esper.contracts.errors import DataError
from esper.tasks.npz import npz
from esper.tasks.table import table

RNG = np.random.default_rng(0)
X = np.round(RNG.normal(3.0, 2.0, size=(200, 3)), 3)
Y = np.arange(200) % 4
NAMES = np.array(["ant", "bee", "cow", "dog"])
ROWS = [[*map(str, x), str(y)] for x, y in zip(X, Y, strict=True)]


@pytest.fixture
def write(tmp_path):
    def write_text(text: str, encoding: str = "utf-8"):
        path = tmp_path / "mine.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write_text


def _joined(rows, delimiter: str = ",") -> str:
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


def _all(task) -> tuple[torch.Tensor, torch.Tensor]:
    parts = (task.train, task.held_out, task.test)
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


def test_a_table_is_the_archive_of_its_numbers(write, tmp_path):
    np.savez(tmp_path / "mine.npz", x=X, y=Y)
    ours, theirs = table(write(_joined(ROWS)), seed=3), npz(tmp_path / "mine.npz", seed=3)
    assert all(map(torch.equal, _all(ours), _all(theirs)))
    assert torch.equal(ours.mean, theirs.mean)
    assert (ours.name, ours.labels, ours.shape) == ("mine", ("0", "1", "2", "3"), (3,))


def _header(delimiter: str = ",") -> str:
    return delimiter.join(["length", "width", "age", "kind"]) + "\n"


def _strings() -> str:
    return _joined([*row[:-1], NAMES[y]] for row, y in zip(ROWS, Y, strict=True))


def _indexed(header: str) -> str:
    return header + "\n" + _joined([str(index), *row] for index, row in enumerate(ROWS))


SAME_TABLES = {
    "header": _header() + _joined(ROWS),
    "semicolons": _joined(ROWS, ";"),
    "decimal commas": _joined(([cell.replace(".", ",") for cell in row] for row in ROWS), ";"),
    "tabs and header": _header("\t") + _joined(ROWS, "\t"),
    "quotes": '"length","width","age","kind"\n' + _joined([f'"{cell}"' for cell in row] for row in ROWS),
    "blanks and empty lines": "\n" + _joined(ROWS, " , ").replace("\n", "\n\n"),
    "carriage returns": _joined(ROWS).replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + _joined(ROWS),
    "no newline at the end": _joined(ROWS).rstrip("\n"),
    "numbered columns and named label": "0,1,2,kind\n" + _joined(ROWS),
    "the index of a data frame": _indexed(",length,width,age,kind"),
    "the index of unnamed columns": _indexed(",0,1,2,3"),
    "whole numbers with a point": _joined([*row[:-1], row[-1] + ".0"] for row in ROWS),
}


@pytest.mark.parametrize("case", SAME_TABLES)
def test_the_same_numbers_make_the_same_task(write, case):
    expected = _all(table(write(_joined(ROWS)), seed=0))
    task = table(write(SAME_TABLES[case]), seed=0)
    assert all(map(torch.equal, _all(task), expected))
    assert task.labels == ("0", "1", "2", "3")


@pytest.mark.parametrize("header", ["", _header(), ",length,width,age,kind\n"])
def test_labels_may_be_text(write, header):
    text = (
        _strings()
        if not header.startswith(",")
        else _joined([str(index), *line.split(",")] for index, line in enumerate(_strings().splitlines()))
    )
    task = table(write(header + text), seed=0)
    assert task.labels == tuple(NAMES)
    assert task.train.x.shape == (128, 3)


def test_a_class_may_be_called_none(write):
    task = table(write(_strings().replace("ant", "none")), seed=0)
    assert "none" in task.labels


def test_one_feature_is_enough(write):
    assert table(write(_joined([row[0], row[-1]] for row in ROWS)), seed=0).train.x.shape == (128, 1)


def _changed(line: int, column: int, cell: str) -> str:
    rows = [list(row) for row in ROWS]
    rows[line - 1][column - 1] = cell
    return _joined(rows)


BAD_TABLES = {
    "infinite": (_changed(7, 3, "inf"), "line 7, column 3: 'inf' is no finite number"),
    "text": (_header() + _changed(9, 1, "red"), r"line 10, column 1 \('length'\): 'red' is no finite number"),
    "text in the first line": (_changed(1, 1, "red"), "line 1, column 1: 'red' is no finite number"),
    "missing label": (_changed(3, 4, ""), "line 3: the label is missing"),
    "quantities": (_changed(3, 4, "0.5"), "column 4 holds 5 different numbers, not all of them whole.*--task"),
    "a cell too many": (_joined(ROWS[:5]) + "1,2,3,4,1\n" + _joined(ROWS[5:]), "line 6: 5 columns, where the first"),
    "a cell too few": (
        _joined(ROWS[:5]) + "1,2\n" + _joined(ROWS[5:]),
        "line 6: 2 columns, where the first line has 4",
    ),
    "one column": (_joined([row[0]] for row in ROWS), "one column only"),
    "an open quote": (_joined(ROWS[:5]) + '"1,2,3,4\n' + _joined(ROWS[5:]), "Check its quotes"),
    "few samples": (_joined(ROWS[:40]), "the table has 40 samples; at least 100"),
    "only a header": (_header(), "the table has 1 samples|is no finite number"),
    "one class": (_joined([*row[:-1], "7"] for row in ROWS), "all 200 labels are 7"),
    "as many labels as samples": (
        _joined([*row[:-1], str(i)] for i, row in enumerate(ROWS)),
        "200 different whole numbers.*--task",
    ),
    "empty lines only": ("\n\n\n", "holds no lines"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_table_that_cannot_be_used_is_refused_with_one_clear_message(write, case):
    text, says = BAD_TABLES[case]
    path = write(text)
    with pytest.raises(DataError, match=says) as caught:
        table(path, seed=0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_empty_or_a_directory_is_refused(tmp_path, write):
    with pytest.raises(DataError, match="There is no file"):
        table(tmp_path / "none.csv", seed=0)
    with pytest.raises(DataError, match="is empty"):
        table(write(""), seed=0)
    with pytest.raises(DataError, match="not a file"):
        table(tmp_path, seed=0)


def test_bytes_that_are_no_text_are_refused(write):
    with pytest.raises(DataError, match=r"not UTF-8 text \(at byte"):
        table(write(_strings().replace("ant", "Käfer"), encoding="latin-1"), seed=0)
