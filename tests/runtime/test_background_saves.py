"""Checkpoints that are written while the run goes on hold the run as it was when they were begun."""

import os
import threading

import pytest
import torch

from esper.checkpoint import store
from esper.checkpoint.packed import Packed
from tests.runtime import toy
from tests.runtime.toy import Recipe, growing
from tests.tree_digest import tree_digest


def checkpoints(trial) -> list[dict]:
    return [event for event in trial.heard if event["event"] == "checkpoint"]


def trained(recipe: Recipe, directory, *, in_background: bool):
    source, heard = toy.loader(), []
    trial = recipe.build(loader=source, directory=directory, saves_in_background=in_background, on_event=heard.append)
    toy.train_from(trial, source)
    trial.heard = heard
    return trial


def test_a_run_ends_with_the_bytes_of_one_that_waits(tmp_path):
    recipe = Recipe(growing())
    waiting, going_on = (trained(recipe, tmp_path / str(way), in_background=way) for way in (False, True))
    states = [store.read(tmp_path / str(way) / "checkpoints") for way in (False, True)]
    assert tree_digest(states[0]["body"]) == tree_digest(states[1]["body"])
    assert toy.timeless(waiting.heard) == toy.timeless(going_on.heard)
    steps = [[event["step"] for event in checkpoints(trial)] for trial in (waiting, going_on)]
    assert steps[0] == steps[1]
    assert all(event["stall_seconds"] == event["seconds"] for event in checkpoints(waiting))
    assert all(event["stall_seconds"] < event["seconds"] for event in checkpoints(going_on))


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Writers wait for it."""
    opened, write = threading.Event(), store.write_prepared

    def waits(directory, prepared, number):
        opened.wait(60)
        return write(directory, prepared, number)

    monkeypatch.setattr(store, "write_prepared", waits)
    return opened


def test_what_is_written_is_the_run_as_it_was(gate, tmp_path):
    source = toy.loader()
    trial = Recipe(growing()).build(loader=source, directory=tmp_path, saves_in_background=True)
    for batch in source:
        trial.session.step(batch)
    trial.session.after_epoch()  # begins a checkpoint
    expected = tree_digest(trial.run.snapshots.body()["model"])
    for batch in list(source)[:3]:
        trial.session.step(batch)
    assert tree_digest(trial.run.snapshots.body()["model"]) != expected
    gate.set()
    trial.session.step(next(iter(toy.batches(1))))
    trial.session.save(tmp_path / "other")  # waits for the one before
    saved = store.read(tmp_path / "checkpoints")
    assert tree_digest(saved["body"]["model"]) == expected
    assert saved["clock"]["step"] == 10


def test_a_process_that_is_forked_off_waits_for_what_is_written(gate, tmp_path):
    source = toy.loader()
    trial = Recipe(growing()).build(loader=source, directory=tmp_path, saves_in_background=True)
    for batch in source:
        trial.session.step(batch)
    trial.session.after_epoch()
    threading.Timer(0.2, gate.set).start()
    child = os.fork()
    if child == 0:
        os._exit(0 if any((tmp_path / "checkpoints").glob("[0-9]*")) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_disk_that_is_full_is_told_and_the_next_one_is_tried(tmp_path, monkeypatch):
    calls, write = [], store.write_prepared

    def full_once(directory, prepared, number):
        calls.append(directory)
        if len(calls) == 1:
            raise OSError("No space left on device")
        return write(directory, prepared, number)

    monkeypatch.setattr(store, "write_prepared", full_once)
    with pytest.warns(RuntimeWarning, match="No checkpoint was written at step .*: No space left"):
        trial = trained(Recipe(growing()), tmp_path, in_background=True)
    assert len(checkpoints(trial)) == len(calls) - 1 > 1


def test_a_part_that_is_replaced_stays_what_it_was():
    part = Packed.of({"a": torch.ones(3)})
    held = store.Prepared.of({"part": part}).held()
    part.write({"a": torch.zeros(3)})
    assert torch.equal(held.apart["apart-1"].read()["a"], torch.ones(3))
    assert not part.read()["a"].any()
