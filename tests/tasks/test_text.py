"""A text: three stretches in a row, windows that do not overlap, and the character that comes next."""

import itertools
from functools import partial

import pytest
import torch

from esper.contracts.errors import DataError
from esper.tasks.text import MIN_CHARACTERS, text
from esper.tasks.windows import MAX_JUDGED
from tests.tasks.texts import LETTERS, write_text


@pytest.fixture
def write(tmp_path):
    return partial(write_text, tmp_path)


def _read(task, windows: torch.Tensor) -> str:
    return "".join(task.labels[token] for token in windows.flatten().tolist())


@pytest.mark.parametrize(("length", "window"), [(6_000, 32), (60_000, 64)])
def test_windows_are_the_text_in_its_order_and_targets_come_one_later(write, length, window):
    path = write(length)
    task, content = text(path), path.read_text()
    assert task.is_text
    assert task.train.x.shape[1:] == task.train.y.shape[1:] == task.shape == (window,)
    assert task.train.x.dtype == task.train.y.dtype == torch.int64
    read = _read(task, task.train.x)
    assert content.startswith(read)
    assert torch.equal(task.train.x.flatten()[1:], task.train.y.flatten()[:-1])


def test_the_vocabulary_is_the_characters(write):
    task = text(write(6_000, "aß€😀\t"))
    assert task.labels == tuple(sorted("aß€😀\t"))
    assert task.num_classes == 5


def test_the_parts_are_stretches_that_do_not_overlap(write):
    path = write(8_000)
    task, content = text(path), path.read_text()
    ends = []
    for part in (task.train, task.held_out, task.test):
        read = [_read(task, torch.cat([x, y[-1:]])) for x, y in zip(part.x, part.y, strict=True)]
        places = [content.index(window) for window in read]
        assert places == sorted(places)
        assert min(b - a for a, b in itertools.pairwise(places)) >= 32
        ends.append((places[0], places[-1] + len(read[-1])))
    assert ends[0][1] <= ends[1][0] < ends[1][1] <= ends[2][0]


def test_few_windows_are_judged_of_a_long_text_and_neighbours_as_one(write):
    path = write(800_000)
    task, content = text(path), path.read_text()
    assert len(task.held_out.y) == len(task.test.y) == MAX_JUDGED
    assert task.groups.bincount().tolist() == [4] * (MAX_JUDGED // 4)
    assert all(_read(task, task.held_out.x[task.groups == group]) in content for group in (0, 7, 249))
    spread = [content.index(_read(task, window)) for window in task.held_out.x[::100]]
    assert spread[-1] - spread[0] > 70_000


def test_every_group_of_a_short_text_stands_alone(write):
    task = text(write(MIN_CHARACTERS))
    assert task.groups.tolist() == list(range(len(task.held_out.y)))
    assert len(task.held_out.y) >= 20


def test_there_is_nothing_to_standardise(write):
    task = text(write(6_000))
    assert task.mean is None
    assert task.std is None


def test_a_byte_order_mark_is_no_character(write, tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + write(6_000).read_bytes())
    assert text(tmp_path / "marked.txt").labels == tuple(sorted(LETTERS))


@pytest.mark.parametrize("length", [0, 1, MIN_CHARACTERS - 1])
def test_a_text_that_is_too_short_is_refused_with_what_is_needed(write, length):
    with pytest.raises(DataError, match=f"holds {length:,} characters; at least 5,000 are needed"):
        text(write(length))


def test_a_text_of_one_character_is_refused(write):
    with pytest.raises(DataError, match="holds 'x' only"):
        text(write(6_000, "x"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_bytes(("ä" * 6_000).encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(at byte 0\)"):
        text(tmp_path / "mine.txt")


def test_a_missing_file_or_a_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        text(tmp_path / "none.txt")
    with pytest.raises(DataError, match="not a file"):
        text(tmp_path)
