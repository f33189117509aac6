"""A checkpoint is written whole or not at all, and trusted only after its digests."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import esper.checkpoint.store as store
from esper.checkpoint.manifest import FORMAT
from esper.contracts.errors import CheckpointError
from tests.few import few
from tests.tree_digest import tree_digest

FILES = ("manifest.json", "tensors.safetensors")


def tree(step: int = 1) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "step": step,
        "model": {"weight": torch.randn(3, 4, generator=generator), "mask": torch.tensor([True, False])},
        "empty": torch.zeros(0, 2),
        "alpha": torch.tensor(0.5, dtype=torch.bfloat16),
        "note": "grüße",
        "rates": [1e-3, float("nan"), float("inf")],
    }


def equal(one: dict, other: dict) -> bool:
    return tree_digest(one) == tree_digest(other)


def test_what_is_written_is_read(tmp_path):
    folder = store.write(tmp_path / "run", tree())
    assert equal(store.read(tmp_path / "run"), tree())
    assert equal(store.read(folder), tree())


def test_a_tree_that_is_one_tensor_or_nothing_is_stored_too(tmp_path):
    for value in (torch.arange(3), None, {}):
        store.write(tmp_path, value)
        assert tree_digest(store.read(tmp_path)) == tree_digest(value)


def test_tensors_that_share_memory_or_are_transposed_are_stored(tmp_path):
    shared, square = torch.randn(3), torch.randn(2, 3)
    store.write(tmp_path, {"a": shared, "b": shared, "c": shared[1:], "d": square.t()})
    back = store.read(tmp_path)
    assert torch.equal(back["d"], square.t())
    assert torch.equal(back["a"], back["b"])
    assert torch.equal(back["c"], shared[1:])


def test_the_newest_two_generations_are_kept_and_named(tmp_path):
    names = [store.write(tmp_path, tree(step)).name for step in range(1, 5)]
    assert names == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[-2:]
    assert store.read(tmp_path)["step"] == 4
    assert store.read(tmp_path / names[-2])["step"] == 3


@pytest.mark.parametrize("last", ["000099", "999999"])
def test_generations_sort_by_number_for_ever(tmp_path, last):
    store.write(tmp_path, tree(1)).rename(tmp_path / last)
    for step in (2, 3, 4):
        assert int(store.write(tmp_path, tree(step)).name) == int(last) + step - 1
        assert store.read(tmp_path)["step"] == step
        assert len(list(tmp_path.iterdir())) == 2


def size_of_tensors(folder: Path) -> int:
    return (folder / "tensors.safetensors").stat().st_size


def test_equal_tensors_are_written_once_and_come_back_apart(tmp_path):
    large = torch.randn(1000)
    twice = store.write(tmp_path / "twice", {"a": large, "b": large.clone(), "c": [large.view(10, 100)]})
    once = store.write(tmp_path / "once", {"a": large, "c": [large.view(10, 100)]})  # another shape is another tensor
    assert size_of_tensors(twice) - size_of_tensors(once) < 100
    back = store.read(twice)
    assert torch.equal(back["a"], large)
    back["a"].zero_()
    assert torch.equal(back["b"], large)
    assert torch.equal(back["c"][0], large.view(10, 100))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """A directory with two generations, and the bytes of the newer one."""
    directory = tmp_path_factory.mktemp("checkpoints")
    store.write(directory, tree(1))
    folder = store.write(directory, tree(2))
    return folder, {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("bit", few([0x01, 0x20, 0x80, 0xFF], [0x01, 0x80]), ids=hex)
@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_of_any_file_is_detected(written, name, bit):
    """At every position; the message names the generation before it."""
    folder, files = written
    messages = []
    for position in range(len(files[name])):
        spoilt = bytearray(files[name])
        spoilt[position] ^= bit
        (folder / name).write_bytes(spoilt)
        try:
            store.read(folder)
            messages.append(f"the flip at {position} was not seen")
        except CheckpointError as error:
            messages.append(str(error))
    (folder / name).write_bytes(files[name])
    start, end = f"The checkpoint {folder} is damaged: ", f"load {folder.parent / '000001'}."
    assert [message for message in messages if not (message.startswith(start) and message.endswith(end))] == []
    assert equal(store.read(folder.parent), tree(2))


@pytest.mark.filterwarnings("ignore:The checkpoint .* is damaged:RuntimeWarning")
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_detected_at_any_length(written, name):
    folder, files = written
    for length in range(len(files[name])):
        (folder / name).write_bytes(files[name][:length])
        with pytest.raises(CheckpointError, match=re.escape(f"{folder} is damaged")):
            store.read(folder)
        assert equal(store.read(folder.parent), tree(1))
    (folder / name).write_bytes(files[name] + b"\0")
    with pytest.raises(CheckpointError, match="is damaged"):
        store.read(folder)
    (folder / name).write_bytes(files[name])


@pytest.mark.parametrize("name", FILES)
def test_the_generation_before_takes_the_place_of_a_damaged_one_and_is_told(tmp_path, name):
    older, newer = store.write(tmp_path, tree(1)), store.write(tmp_path, tree(2))
    (newer / name).unlink()
    with pytest.warns(RuntimeWarning, match=re.escape(f"{newer} is damaged")) as told:
        saved = store.read_saved(tmp_path)
    assert str(told[0].message).endswith(f"In its place {older} is taken, which is older.")
    assert saved.folder == older
    assert equal(saved.state, tree(1))
    with pytest.raises(CheckpointError, match=re.escape(str(newer))):
        store.read(newer)  # what is named is taken or refused


def test_files_of_another_generation_are_detected(tmp_path):
    older, newer = store.write(tmp_path, tree(1)), store.write(tmp_path, tree(2))
    shutil.copy(older / "tensors.safetensors", newer / "tensors.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.weight does not match its digest"):
        store.read(newer)


def test_where_all_generations_are_damaged_each_is_told(tmp_path):
    folders = [store.write(tmp_path, tree(step)) for step in (1, 2)]
    for folder in folders:
        (folder / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"Start anew\.") as refusal:
        store.read(tmp_path)
    assert all(f"{folder} is damaged" in str(refusal.value) for folder in folders)


def test_what_is_on_the_disk_is_compared_with_what_was_to_be_written(tmp_path, monkeypatch):
    store.write(tmp_path, tree(1))

    def spoilt(tensors, path):
        save_file(tensors, path)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)

    monkeypatch.setattr(store, "save_file", spoilt)
    with pytest.raises(OSError, match=r"cannot be read back: .* is another"):
        store.write(tmp_path, tree(2))
    assert store.read(tmp_path)["step"] == 1


def test_a_generation_that_was_passed_over_does_not_take_the_place_of_a_whole_one(tmp_path):
    older, newer = store.write(tmp_path, tree(1)), store.write(tmp_path, tree(2))
    (newer / "tensors.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        store.read(tmp_path)
    newest = store.write(tmp_path, tree(3))
    assert sorted(tmp_path.iterdir()) == [older, newest]


def test_a_file_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    store.write(tmp_path, tree(1))
    newer = store.write(tmp_path, tree(2))

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(store, "file_digest", refused)
    with pytest.raises(CheckpointError, match=re.escape(f"{newer} cannot be read: [Errno 13]")):
        store.read(tmp_path)


def test_what_is_whole_and_not_understood_is_not_passed_over(tmp_path, monkeypatch):
    store.write(tmp_path, tree(1))
    monkeypatch.setattr(store, "flatten", lambda *_: ({"matrix": []}, {}))
    store.write(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"'matrix'.*newer version"):
        store.read(tmp_path)


def test_what_was_interrupted_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_compare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path, tree(1))
    assert not list(tmp_path.iterdir())


def test_pieces_are_digested_while_python_ends(tmp_path):
    """Threads cannot be begun any more then, and what was begun in the background is still written."""
    script = """
import sys, threading, time
from pathlib import Path
import torch
from concurrent.futures import ThreadPoolExecutor
from esper.checkpoint import store
state = {str(index): torch.randn(5_000_000) for index in range(2)}
ThreadPoolExecutor(1).submit(lambda: (time.sleep(1), store.write(Path(sys.argv[1]), state)))
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert len(store.read(tmp_path)) == 2


def test_a_manifest_tells_dtypes_shapes_and_its_generation(tmp_path):
    store.write(tmp_path, tree(1))
    told = json.loads((store.write(tmp_path, tree(2)) / "manifest.json").read_bytes().splitlines()[0])
    assert (told["format"], told["generation"]) == (FORMAT, 2)
    assert told["tensors"][".alpha"] == ["bfloat16", []]
    assert told["tensors"][".model.weight"] == ["float32", [3, 4]]


@pytest.mark.parametrize("failing", ["save_file", "_flush", "_compare", "file_digest"])
def test_a_write_that_fails_is_invisible_and_cleaned_up_by_the_next(tmp_path, failing):
    """Wherever it stops before the rename, the generations that there were are what a reader sees."""
    store.write(tmp_path, tree(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, failing, lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            store.write(tmp_path, tree(2))
    assert store.read(tmp_path)["step"] == 1
    store.write(tmp_path, tree(3))
    assert store.read(tmp_path)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_what_cannot_be_stored_leaves_nothing_behind(tmp_path):
    with pytest.raises(CheckpointError, match="which cannot be stored"):
        store.write(tmp_path / "new", {"a": object()})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_no_checkpoint_is_said_by_name(tmp_path, make):
    make(tmp_path / "none")
    with pytest.raises(CheckpointError, match=re.escape(f"no checkpoint in {tmp_path / 'none'}")):
        store.read(tmp_path / "none")


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
    store.write(tmp_path, tree())
    monkeypatch.setattr(store, "FORMAT", 99)
    store.write(tmp_path, tree())
    with pytest.raises(CheckpointError, match=f"format 99; this version of Esper reads 6, 7, 8, 9, 10 and {FORMAT}"):
        store.read(tmp_path)  # what is there is not damaged: an older one is not taken


@given(st.integers(0, 11), st.integers(0, 3))
def test_a_digest_sees_every_byte(element, byte):
    one = tree()
    before = tree_digest(one)
    one["model"]["weight"].view(-1).view(torch.uint8)[4 * element + byte] ^= 1
    assert tree_digest(one) != before


def test_without_the_digests_a_flipped_byte_would_be_trusted(tmp_path, monkeypatch):
    """Negative control: the format alone does not see it."""
    monkeypatch.setattr(store, "file_digest", lambda path: "equal")
    folder = store.write(tmp_path, tree())
    raw = bytearray((folder / "tensors.safetensors").read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    raw[header] ^= 0x40
    (folder / "tensors.safetensors").write_bytes(raw)
    assert not torch.equal(store.read(tmp_path)["model"]["weight"], tree()["model"]["weight"])


def test_a_digest_sees_dtype_and_shape():
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(2, dtype=torch.float64)]
    assert len({store.digest(tensor) for tensor in zeros}) == 4
