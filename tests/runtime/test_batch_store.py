"""Batches of a window lie in memory within a bound, then on disk, or are drawn again; arms are the same to the byte."""

import gc
import os
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

import esper
from esper.checkpoint import store as checkpoint
from esper.contracts.errors import CheckpointError
from esper.runtime.state.batch_store import BatchStore, LatestBatches, ReplayError
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Trial, growing, timeless

Pair = namedtuple("Pair", ["x", "y"])


def batch_of(number: int) -> dict[str, Any]:
    """768 bytes of tensors."""
    x = torch.full((4, 4, 2, 2), float(number)).to(memory_format=torch.channels_last)
    return {"x": x, "y": [torch.arange(64) + number, f"name {number}"]}


def make(max_bytes: int, folder: Any = None, loader: Any = None) -> tuple[BatchStore, list[str]]:
    told: list[str] = []
    return BatchStore(max_bytes, folder, loader, told.append), told


def same(batch: Any, number: int) -> bool:
    expected = batch_of(number)
    x, (y, name) = batch["x"], batch["y"]
    is_laid = x.stride() == expected["x"].stride()
    return torch.equal(x, expected["x"]) and is_laid and torch.equal(y, expected["y"][0]) and name == f"name {number}"


def open_files() -> int:
    gc.collect()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum("(deleted)" in os.readlink(link) for link in links if os.path.islink(link))


class TestStore:
    def test_gives_back_what_it_took_from_memory_and_from_disk(self, tmp_path):
        store, told = make(16 * 768, tmp_path)
        for number in range(40):
            store.add(batch_of(number))
        for number in [*range(40), 3, 39, 12]:
            assert same(store[number], number)
        assert [int(batch["x"].flatten()[0]) for batch in store[-3:]] == [37, 38, 39]
        assert not told

    def test_holds_by_reference_within_the_bound_and_no_longer(self, tmp_path):
        store, _ = make(16 * 768, tmp_path)
        batches = [batch_of(number) for number in range(40)]
        for batch in batches:
            store.add(batch)
        held = [store[number] is batches[number] for number in range(40)]
        assert held[:12] == [True] * 12
        assert sum(held) <= 14

    def test_blocks_are_gone_from_disk_with_it(self, tmp_path):
        before = open_files()
        store, _ = make(1, tmp_path)
        for number in range(3):
            store.add(batch_of(number))
        assert open_files() == before + 3
        del store
        assert open_files() == before
        assert not list(tmp_path.iterdir())

    def test_keeps_classes_of_containers(self):
        store, _ = make(1)
        store.add(Pair(torch.ones(2), torch.zeros(2)))
        assert isinstance(store[0], Pair)
        assert store[0].x.sum() == 2

    def test_tells_once_where_the_bound_cannot_be_kept(self):
        store, told = make(1)
        for _ in range(3):
            store.add((torch.ones(2), object()))
        assert len(store) == 3
        (text,) = told
        assert text.startswith("Batches are kept in memory beyond max_batch_bytes")

    def test_a_full_disk_loses_no_batch(self, tmp_path):
        gone = tmp_path / "gone"
        store, told = make(1, gone)
        for number in range(3):
            store.add(batch_of(number))
        assert all(same(store[number], number) for number in range(3))
        assert len(told) == 1

    @pytest.mark.parametrize("max_bytes", [1, 16 * 768, 2**20])
    def test_goes_on_from_a_checkpoint(self, max_bytes, tmp_path):
        store, _ = make(max_bytes, tmp_path)
        for number in range(20):
            store.add(batch_of(number))
        checkpoint.write(tmp_path / "saved", store.state_dict())
        again, _ = make(max_bytes, tmp_path)
        again.load_state_dict(checkpoint.read(tmp_path / "saved"))
        again.add(batch_of(20))
        assert all(same(again[number], number) for number in range(21))

    def test_reads_what_checkpoints_held_before(self):
        store, _ = make(2**20)
        store.load_state_dict([batch_of(0), batch_of(1)])
        assert [same(store[number], number) for number in range(2)] == [True, True]


class TestDrawingAgain:
    def test_only_indices_are_remembered(self, tmp_path):
        loader = toy.loader()
        store, _ = make(2**20, loader=loader)
        handed = []
        for _ in range(2):
            for batch in loader:
                store.add(batch)
                handed.append(batch)
        assert all(torch.equal(one[0], other[0]) for one, other in zip(store, handed, strict=True))
        entries = store.state_dict()["entries"]
        assert [entry["index"] for entry in entries] == list(range(2 * len(loader)))
        assert all(entry.keys() == {"index", "checksums"} for entry in entries)

    def test_what_the_loop_makes_of_a_batch_is_held(self):
        loader = toy.loader()
        store, _ = make(2**20, loader=loader)
        for x, y in loader:
            store.add((x + 1, y))
        assert all("leaves" in entry for entry in store.state_dict()["entries"])

    def test_also_if_it_does_so_only_now_and_then(self):
        loader = toy.loader()
        store, _ = make(2**20, loader=loader)
        handed = []
        for step, (x, y) in enumerate(loader):
            handed.append((x + step % 2, y))
            store.add(handed[-1])
        assert all(torch.equal(one[0], other[0]) for one, other in zip(store, handed, strict=True))

    def test_a_loader_that_draws_another_batch_is_found_out(self):
        x, y = toy.DATA.x.clone(), toy.DATA.y.clone()
        loader = esper.BatchLoader((x, y), toy.BATCH, seed=3)
        store, _ = make(2**20, loader=loader)
        for batch in loader:
            store.add(batch)
        again, _ = make(2**20, loader=loader)
        again.load_state_dict(store.state_dict())
        assert len(list(store)) == len(list(again)) == len(loader)
        x.view(-1)[5] += 1e-3
        for one in (store, again):
            with pytest.raises(ReplayError, match=r"batch_at\(\d\) gave another batch than the run was trained on"):
                list(one)

    @pytest.mark.parametrize("step", [30, 48])
    def test_such_a_round_ends_without_a_verdict(self, step):
        """Whether the first arm finds it out, or the batch norms that are to judge the run by its mean weights."""
        x, y = toy.DATA.x.clone(), toy.DATA.y.clone()
        loader = esper.BatchLoader((x, y), toy.BATCH, seed=3)
        trial = Recipe(model=lambda: toy.host(batch_norm=True)).build(loader=loader)
        for _ in range(8):
            for batch in loader:
                trial.session.step(batch)
                x += 0.01 * (trial.session.step_count == step)
            trial.session.after_epoch()
        (ended,) = trial.events("round_ended")
        assert ended["reason"].startswith("the loader's batch_at(")
        assert trial.session.step_count == 80

    def test_a_checkpoint_wants_the_loader(self):
        loader = toy.loader()
        store, _ = make(2**20, loader=loader)
        store.add(next(iter(loader)))
        with pytest.raises(CheckpointError, match="Give Session the loader that it was saved with"):
            make(2**20)[0].load_state_dict(store.state_dict())

    def test_a_loader_gives_any_batch_again_and_stays_where_it_is(self):
        loader = toy.loader()
        assert loader.last_index is None
        handed = {}
        for _ in range(2):
            for batch in loader:
                handed[loader.last_index] = batch
                loader.batch_at(3)
        assert list(handed) == list(range(20))
        assert all(torch.equal(batch[0], loader.batch_at(index)[0]) for index, batch in handed.items())


class TestLatest:
    def test_keeps_the_last_ones_within_the_bound(self):
        latest = LatestBatches(5, 3 * 768)
        for number in range(10):
            latest.add(batch_of(number))
        assert [int(batch["x"].flatten()[0]) for batch in latest] == [7, 8, 9]
        latest = LatestBatches(2, 2**20)
        for number in range(10):
            latest.add(batch_of(number))
        assert len(latest) == 2
        latest.clear()
        assert not list(latest)

    def test_but_the_newest_in_any_case(self):
        latest = LatestBatches(5, 1)
        latest.add(batch_of(0))
        assert len(latest) == 1


def renewed(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """One that no loader can draw again."""
    return batch[0] * 1.0 + 0.5, batch[1]


WAYS: dict[str, tuple[int, bool]] = {"in memory": (2**30, False), "on disk": (1, False), "drawn again": (2**30, True)}


class TestArms:
    """By each way."""

    @staticmethod
    def built(way: str, directory: Any) -> tuple[Trial, esper.BatchLoader]:
        max_bytes, is_known = WAYS[way]
        config = growing(max_batch_bytes=max_bytes, keep_looks=(0.95,))
        loader = toy.loader()
        recipe = Recipe(config, model=lambda: toy.host(dropout=0.2, batch_norm=True))
        return recipe.build(directory=directory, **({"loader": loader} if is_known else {})), loader

    @staticmethod
    def train(trial: Trial, loader: esper.BatchLoader, epochs: int) -> Trial:
        for _ in range(trial.session.epoch, epochs):
            for batch in loader:
                trial.session.step(batch)
            trial.session.after_epoch()
        return trial

    def test_end_with_the_same_bytes(self, tmp_path):
        ended = {}
        for way in WAYS:
            trial = self.train(*self.built(way, tmp_path / way), 12)
            trial.session.finish()
            assert trial.events("arm_ended")
            ended[way] = trial.digest(), timeless(trial.session.events)
        assert ended["on disk"] == ended["in memory"]
        assert ended["drawn again"] == ended["in memory"]

    @pytest.mark.parametrize("way", few(WAYS, [next(iter(WAYS))]))
    def test_also_after_a_resume_within_the_window(self, way, tmp_path):
        whole = self.train(*self.built(way, tmp_path / "whole"), 8)
        cut, loader = self.built(way, tmp_path / "cut")
        self.train(cut, loader, 3)
        assert cut.rounds.current is not None
        resumed, loader = self.built(way, tmp_path / "resumed")
        resumed.session.load(tmp_path / "cut" / "checkpoints")
        loader.load_state_dict({"epoch": 3, "position": 0})
        self.train(resumed, loader, 8)
        assert resumed.digest() == whole.digest()
        assert timeless(resumed.session.events) == timeless(whole.session.events)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_checkpoint_within_the_window_holds_what_the_way_needs(self, way, tmp_path):
        trial = self.train(*self.built(way, tmp_path), 4)
        assert trial.rounds.current is not None
        state = checkpoint.read(tmp_path / "checkpoints")["growth"]["round"]["batches"]
        kinds = {next(iter(entry)) for entry in state["entries"]}
        assert kinds == {{"in memory": "leaves", "on disk": "block", "drawn again": "index"}[way]}
        assert len(state["entries"]) == 30
