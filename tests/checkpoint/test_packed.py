"""A state in a file without a name: what is read is what was written, or an error."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from esper.contracts.errors import CheckpointError
from tests.tree_digest import tree_digest


def tree(seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "step": seed,
        "model": {"weight": torch.randn(3, 4, generator=generator).t(), "mask": torch.tensor([True, False])},
        "empty": torch.zeros(0, 2),
        "alpha": torch.tensor(0.5, dtype=torch.bfloat16),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
        "note": ("grüße", math.inf),
    }


def equal(one: object, other: object) -> bool:
    return tree_digest(one) == tree_digest(other)


@pytest.mark.parametrize("value", [tree(), {}, None, torch.arange(3)], ids=["tree", "empty", "None", "tensor"])
def test_what_is_written_is_read(value, tmp_path):
    assert equal(Packed.of(value, tmp_path).read(), value)


def test_what_is_read_shares_no_memory_with_anything():
    state = tree()
    packed = Packed.of(state)
    state["model"]["weight"].zero_()
    packed.read()["alpha"].zero_()
    assert equal(packed.read(), tree())


def test_a_state_can_be_replaced_by_a_shorter_one():
    packed = Packed.of(tree())
    packed.write({"step": 2})
    assert packed.read() == {"step": 2}


def test_no_file_is_seen_and_none_stays_open(tmp_path):
    packed = Packed.of(tree(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    handle = packed._file.fileno()
    os.fstat(handle)
    del packed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_what_cannot_be_stored_is_said_by_name():
    with pytest.raises(CheckpointError, match="a is a object, which cannot be stored"):
        Packed.of({"a": object()})


@pytest.fixture
def packed() -> tuple[Packed, bytes]:
    """A packed state, and the bytes of its file."""
    packed = Packed.of(tree())
    return packed, bytes(packed._mapped())


def overwrite(packed: Packed, raw: bytes) -> None:
    packed._file.seek(0)
    packed._file.truncate()
    packed._file.write(raw)
    packed._file.flush()


@pytest.mark.parametrize("bit", [0x01, 0x80], ids=hex)
def test_any_flipped_byte_is_detected(packed, bit):
    kept, raw = packed
    unseen, messages = [], []
    for position in range(len(raw)):
        spoilt = bytearray(raw)
        spoilt[position] ^= bit
        overwrite(kept, bytes(spoilt))
        try:
            unseen.append((position, kept.read()))
        except CheckpointError as error:
            messages.append(str(error))
    assert unseen == []
    assert all("put on disk is damaged" in message for message in messages)
    overwrite(kept, raw)
    assert equal(kept.read(), tree())


def test_a_file_that_was_cut_or_has_grown_is_detected(packed):
    kept, raw = packed
    for spoilt in [*(raw[:length] for length in range(len(raw))), raw + b"\0", b"\0" + raw]:
        overwrite(kept, spoilt)
        with pytest.raises(CheckpointError, match="is damaged"):
            kept.read()


def test_without_digests_a_flipped_byte_would_be_trusted(packed, monkeypatch):
    """Negative control."""
    kept, raw = packed
    overwrite(kept, bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(CheckpointError, match=re.escape("model.weight does not match its digest")):
        kept.read()
    expected = store.digest(tree()["model"]["weight"])
    digests = iter([expected, *(store.digest(tensor) for tensor in tensors_after_the_first())])
    monkeypatch.setattr("esper.checkpoint.packed.raw_digest", lambda *_: next(digests))
    assert not equal(kept.read(), tree())


def tensors_after_the_first() -> list[torch.Tensor]:
    whole = tree()
    return [whole["model"]["mask"], whole["empty"], whole["alpha"], whole["small"]]


def test_a_process_that_was_forked_off_reads_what_was_there_and_writes_what_is_read_here():
    mine, theirs = Packed.of(tree()), Packed()
    child = os.fork()
    if child == 0:
        theirs.write({"got": mine.read(), "more": 1})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert equal(theirs.read(), {"got": tree(), "more": 1})
    assert equal(mine.read(), tree())


@contextmanager
def linking() -> Iterator[list[str]]:
    """Names of the files that were linked inside."""
    linked, link = [], store.link

    def watched(existing: Path, path: Path) -> bool:
        if is_done := link(existing, path):
            linked.append(path.name)
        return is_done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "link", watched)
        yield linked


class TestInACheckpoint:
    """A part of a state that lies on disk goes into a checkpoint as a file, and is not read into memory."""

    def test_it_is_stored_once_and_given_back(self, tmp_path):
        part = Packed.of(tree(2))
        folder = store.write(tmp_path, {"step": 1, "start": part, "again": [part], "other": Packed.of({})})
        assert sorted(path.name for path in folder.iterdir())[:2] == ["apart-1", "apart-2"]
        back = store.read(tmp_path)
        assert isinstance(back["start"], Packed)
        assert back["start"] is back["again"][0]
        assert equal(back["start"].read(), tree(2))
        assert back["other"].read() == {}

    def test_it_outlives_its_checkpoint_and_can_be_replaced_without_harm_to_it(self, tmp_path):
        """The two generations that a directory keeps are deleted while a run goes on from them."""
        folder = store.write(tmp_path, {"part": Packed.of(tree(2))})
        one, other = store.read(folder)["part"], store.read(folder)["part"]
        one.write({"new": True})
        assert one.read() == {"new": True}
        assert equal(store.read(folder)["part"].read(), tree(2))
        for step in range(3):
            store.write(tmp_path, {"step": step})
        assert not folder.exists()
        assert equal(other.read(), tree(2))

    def test_any_flipped_byte_of_it_is_detected(self, tmp_path):
        store.write(tmp_path, {})
        folder = store.write(tmp_path, {"part": Packed.of(tree(2))})
        raw = (folder / "apart-1").read_bytes()
        for position in range(len(raw)):
            spoilt = bytearray(raw)
            spoilt[position] ^= 0x20
            (folder / "apart-1").write_bytes(spoilt)
            with pytest.raises(CheckpointError, match=re.escape(f"{folder} is damaged: ") + ".*load .*000001"):
                store.read(folder)

    @pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
    def test_a_missing_or_empty_one_is_detected(self, tmp_path, spoil):
        folder = store.write(tmp_path, {"part": Packed.of(tree(2))})
        spoil(folder / "apart-1")
        with pytest.raises(CheckpointError, match="is damaged"):
            store.read(tmp_path)

    def test_one_of_another_generation_is_detected(self, tmp_path):
        older, newer = (store.write(tmp_path, {"part": Packed.of(tree(seed))}) for seed in (1, 2))
        (newer / "apart-1").write_bytes((older / "apart-1").read_bytes())
        with pytest.raises(CheckpointError, match="apart-1 does not match its digest"):
            store.read(newer)


class TestWhatHasNotChanged:
    """A part that the generation which goes has too is linked; what a part holds is not written beside it."""

    @staticmethod
    def links(folder: Path) -> dict[str, int]:
        return {path.name: path.stat().st_nlink for path in folder.glob("apart-*")}

    def test_is_linked_under_whatever_name_it_has(self, tmp_path):
        stays, goes, comes = (Packed.of(tree(seed)) for seed in (1, 2, 3))
        store.write(tmp_path, [goes, stays])
        store.write(tmp_path, [])
        with linking() as linked:
            folder = store.write(tmp_path, [stays, comes])
        assert linked == ["apart-1"]
        assert [equal(part.read(), tree(seed)) for part, seed in zip(store.read(folder), (1, 3), strict=True)] == [
            True,
            True,
        ]

    def test_two_generations_share_no_file(self, tmp_path):
        part = Packed.of(tree())
        with linking() as linked:
            folders = [store.write(tmp_path, [part]) for _ in range(6)]
        assert linked == ["apart-1"] * 4
        kept = {(folder / "apart-1").stat().st_ino for folder in folders[-2:]}
        assert len(kept) == 2
        assert self.links(folders[-1]) == self.links(folders[-2]) == {"apart-1": 1}

    def test_nor_where_one_was_passed_over(self, tmp_path):
        part = Packed.of(tree())
        whole, damaged = (store.write(tmp_path, [part]) for _ in range(2))
        (damaged / "manifest.json").write_bytes(b"")
        with pytest.warns(RuntimeWarning, match="is damaged"):
            store.read(tmp_path)
        newest = store.write(tmp_path, [part])
        assert sorted(tmp_path.iterdir()) == [whole, newest]
        assert (whole / "apart-1").stat().st_ino != (newest / "apart-1").stat().st_ino

    def test_is_linked_by_a_run_that_was_resumed(self, tmp_path):
        for _ in range(2):
            store.write(tmp_path, [Packed.of(tree())])
        with linking() as linked:
            store.write(tmp_path, store.read(tmp_path))
        assert linked == ["apart-1"]

    def test_what_was_replaced_is_written_anew(self, tmp_path):
        """The control; and the generation before keeps what it had."""
        part = Packed.of(tree(1))
        store.write(tmp_path, [part])
        older = store.write(tmp_path, [part])
        part.write(tree(2))
        with linking() as linked:
            store.write(tmp_path, [part])
        assert linked == []
        assert equal(store.read(older)[0].read(), tree(1))

    @pytest.mark.parametrize(
        "spoil", [lambda raw: raw[:-20], lambda raw: bytes([raw[0] ^ 1]) + raw[1:], lambda raw: b""]
    )
    def test_a_damaged_file_is_not_linked(self, tmp_path, spoil):
        part = Packed.of(tree())
        older = store.write(tmp_path, [part])
        store.write(tmp_path, [part])
        (older / "apart-1").write_bytes(spoil((older / "apart-1").read_bytes()))
        with linking() as linked:
            store.write(tmp_path, [part])
        assert linked == []
        assert equal(store.read(tmp_path)[0].read(), tree())

    def test_a_folder_in_the_place_of_a_file_is_not_linked(self, tmp_path):
        part = Packed.of(tree())
        older = store.write(tmp_path, [part])
        store.write(tmp_path, [part])
        (older / "apart-1").unlink()
        (older / "apart-1").mkdir()
        store.write(tmp_path, [part])
        assert equal(store.read(tmp_path)[0].read(), tree())

    def test_is_copied_where_links_are_not_supported(self, tmp_path, monkeypatch):
        def hardlink_to(path, target):
            raise PermissionError("Operation not permitted")

        monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
        part = Packed.of(tree())
        for _ in range(2):
            folder = store.write(tmp_path, [part])
        assert self.links(folder) == {"apart-1": 1}
        assert equal(store.read(tmp_path)[0].read(), tree())

    def test_tensors_that_a_part_holds_are_not_written_beside_it(self, tmp_path):
        state = {"weight": torch.randn(1000), "step": 1}
        folder = store.write(tmp_path, {"live": state, "kept": Packed.of(state)})
        assert (folder / "tensors.safetensors").stat().st_size < 200
        back = store.read(tmp_path)
        assert torch.equal(back["live"]["weight"], state["weight"])
        back["live"]["weight"].zero_()
        assert torch.equal(back["kept"].read()["weight"], state["weight"])

    def test_and_are_missed_if_the_part_is_damaged(self, tmp_path):
        state = {"weight": torch.randn(1000)}
        folder = store.write(tmp_path, {"live": state, "kept": Packed.of(state)})
        raw = bytearray((folder / "apart-1").read_bytes())
        raw[0] ^= 1
        (folder / "apart-1").write_bytes(raw)
        with pytest.raises(CheckpointError, match="does not match its digest"):
            store.read(tmp_path)
