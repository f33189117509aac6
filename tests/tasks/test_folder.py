"""A folder of texts: bytes, whole files held out, nothing that is no text, and no copy of what is learned from."""

import os

import numpy as np
import pytest
import torch

from esper.contracts.errors import DataError
from esper.evaluation.scoring import mean_loss, per_sample
from esper.tasks.catalogue import load_task
from esper.tasks.folder import folder
from esper.tasks.windows import MAX_JUDGED
from tests.tasks.texts import write_texts

CONTEXT = 16


def _bytes(task, part) -> bytes:
    return bytes(getattr(task, part).x.flatten().tolist())


def _names(content: bytes) -> set[int]:
    """The files that a side holds: each begins with its own number in angle brackets."""
    return {int(piece[1:4]) for piece in content.split(b"\0") if piece.startswith(b"<") and len(piece) > 4}


def test_windows_are_bytes_and_targets_come_one_later(tmp_path):
    task = folder(write_texts(tmp_path), 0, CONTEXT)
    assert (task.is_text, task.tokens, task.num_classes, task.shape) == (True, "bytes", 256, (CONTEXT,))
    assert torch.equal(task.train.x.flatten()[1:], task.train.y.flatten()[:-1])
    assert task.labels[65] == "A"
    assert task.labels[10] == "0x0A"


def test_many_bytes_are_held_as_bytes_and_windows_are_views_of_them(tmp_path):
    task = folder(write_texts(tmp_path), 0, CONTEXT)
    assert task.train.x.dtype is task.train.y.dtype is torch.uint8
    assert task.train.x.untyped_storage().data_ptr() == task.train.y.untyped_storage().data_ptr()
    assert task.train.x.untyped_storage().nbytes() < 1.1 * task.train.x.numel()
    assert task.example(2).dtype is task.held_out.x.dtype is task.test.y.dtype is torch.int64


def test_a_file_lies_on_one_side_only_and_another_seed_deals_others(tmp_path):
    path = write_texts(tmp_path, files=60)
    dealt = []
    for seed in (0, 0, 1):
        task = folder(path, seed, CONTEXT)
        train, held_out, test = (_names(_bytes(task, part)) for part in ("train", "held_out", "test"))
        assert len(held_out) == len(test) == 3
        assert not train & held_out
        assert not train & test
        assert not held_out & test
        dealt.append(held_out)
    assert dealt[0] == dealt[1] != dealt[2]


def test_a_large_file_is_there_to_learn_from(tmp_path):
    path = write_texts(tmp_path, files=60)
    (path / "large.txt").write_bytes(b"<999>" + b"L" * 20_000)
    for seed in range(5):
        assert 999 in _names(_bytes(folder(path, seed, CONTEXT), "train"))


def test_of_files_with_the_same_content_one_is_read(tmp_path):
    path = write_texts(tmp_path)
    plain = folder(path, 0, CONTEXT)
    for number, name in enumerate(sorted(os.listdir(path))[:20]):
        (path / f"z{number}").write_bytes((path / name).read_bytes())
    task = folder(path, 0, CONTEXT)
    assert "left out: 20 copies" in task.told
    assert torch.equal(task.train.x, plain.train.x)


def test_only_texts_are_read_and_folders_by_links_are_not(tmp_path):
    path = write_texts(tmp_path)
    plain = folder(path, 0, CONTEXT)
    (path / ".git").mkdir()
    (path / ".git" / "text").write_text("hidden" * 100)
    (path / ".hidden").write_text("hidden" * 100)
    (path / "empty").touch()
    (path / "binary").write_bytes(b"\x7fELF\0" * 100)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far").write_text("far" * 100)
    (path / "link").symlink_to(elsewhere)
    (path / "broken").symlink_to(path / "nowhere")
    os.mkfifo(path / "pipe")
    task = folder(path, 0, CONTEXT)
    assert task.told[1:] == ("left out: 1 binary file",)
    assert torch.equal(task.train.x, plain.train.x)


def test_any_encoding_is_read_and_folders_below_are(tmp_path):
    path = write_texts(tmp_path)
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "latin").write_bytes("äöü".encode("latin-1") * 1000)
    found = {byte for part in ("train", "held_out", "test") for byte in _bytes(folder(path, 0, CONTEXT), part)}
    assert "ä".encode("latin-1")[0] in found


def test_few_windows_of_much_text_are_judged_and_neighbours_as_one(tmp_path):
    task = folder(write_texts(tmp_path, files=60, size=8_000), 0, CONTEXT)
    assert len(task.held_out.y) == len(task.test.y) == MAX_JUDGED
    assert task.groups.bincount().tolist() == [4] * (MAX_JUDGED // 4)


def test_bytes_are_learned_as_their_numbers_are(tmp_path):
    """A loss of uint8 samples is that of the same int64 ones, and a batch has a gradient."""
    task = load_task(f"text:{write_texts(tmp_path)}", 0, "gpt", host_settings={"context": CONTEXT, "width": 8})
    model, few = task.make_host(), [one[:8] for one in task.train]
    loss = mean_loss(model, tuple(few))
    loss.backward()
    assert loss == mean_loss(model, tuple(one.long() for one in few))
    assert per_sample(model, type(task.train)(*few))[0].mean().item() == pytest.approx(loss.item(), rel=1e-5)


def _empty(path):
    (path / "binary").write_bytes(b"\0" * 10_000)


def _one(path):
    (path / "a.txt").write_text("text" * 10_000)
    (path / "b.txt").write_text("text" * 10_000)


def _two(path):
    _one(path)
    (path / "c.txt").write_text("other" * 10_000)


def _short(path):
    for number in range(30):
        (path / f"{number}").write_text(f"{number} " * 1000)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (_empty, "There is no text below"),
        (_one, "one text only, and whole files are held out. Take the file itself, text:.*a.txt"),
        (_two, "there are 2 texts, and 3 are needed"),
        (_short, r"leaves \d+ windows of 256 bytes to judge by; 20 are needed.*context=\d+"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(write, said, tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=said):
        folder(tmp_path, 0)


def test_the_context_that_a_refusal_names_will_do(tmp_path):
    _short(tmp_path)
    with pytest.raises(DataError) as refused:
        folder(tmp_path, 0)
    context = int(str(refused.value).rsplit("=", 1)[1].rstrip("."))
    assert len(folder(tmp_path, 0, context).test.y) >= 20


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = write_texts(tmp_path)

    def refused(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refused)
    with pytest.raises(DataError, match=r"text-000.txt cannot be read: Permission denied. Allow it, or move it"):
        folder(path, 0)


def test_the_data_is_not_held_many_times_over(tmp_path):
    """Memory at most: the texts, and the sides that they are put together to."""
    import tracemalloc

    rng, size = np.random.default_rng(0), 20 * 100_000
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(rng.integers(97, 123, size=size // 20, dtype=np.uint8).tobytes())
    tracemalloc.start()
    folder(tmp_path, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * size
