"""On a full disk a run goes on: no decision is lost or taken twice, and what could not be written is written later."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper.checkpoint.packed import Packed
from esper.runtime.record.log_files import LOOSE
from tests.runtime import toy
from tests.runtime.full_disk import FullDisk, full_disk
from tests.runtime.toy import Recipe, Script, growing, timeless


@pytest.fixture
def disk() -> Iterator[FullDisk]:
    with full_disk() as one:
        yield one


def lines(directory: Path) -> list[dict[str, Any]]:
    """All lines of both logs that a session keeps."""
    text = [line for name in ("audit", "metrics") for line in (directory / f"{name}.jsonl").read_text().splitlines()]
    return [event for event in map(json.loads, text) if event["event"] not in LOOSE]


def without_notes(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in timeless(events) if event["event"] != "note"]


def by_log(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=lambda event: event["event"] == "epoch")


def test_a_state_cannot_be_put_on_a_full_disk(disk, tmp_path):
    """The control: this is what the runs below meet."""
    disk.fill()
    with pytest.raises(OSError, match="File too large"):
        Packed.of({"a": 1}, tmp_path)
    disk.empty()
    assert Packed.of({"a": 1}, tmp_path).read() == {"a": 1}


def test_a_state_that_cannot_be_replaced_stays(disk, tmp_path):
    packed = Packed.of({"a": 1}, tmp_path)
    disk.fill()
    with pytest.raises(OSError, match="File too large"):
        packed.write({"a": 2})
    disk.empty()
    assert packed.read() == {"a": 1}


@pytest.mark.parametrize("room", [0, 10, 200], ids=lambda room: f"{room} bytes left")
def test_lines_that_could_not_be_written_are_written_later_each_once_and_whole(room, disk, tmp_path):
    trial = Recipe(growing(telemetry_rows=0)).build(directory=tmp_path).train(1)
    longest = max((tmp_path / f"{name}.jsonl").stat().st_size for name in ("audit", "metrics"))
    disk.fill(longest + room)
    with pytest.warns(RuntimeWarning) as warned:
        trial.train(3)
    (about_logs,) = [str(one.message) for one in warned if "The logs in" in str(one.message)]
    assert "File too large" in about_logs
    disk.empty()
    trial.train()
    trial.session.finish()
    assert lines(tmp_path) == by_log(trial.session.events)
    assert any("cannot be written" in event["text"] for event in trial.events("note"))


@pytest.mark.parametrize(
    ("point", "trial", "objective"),
    [
        ("decide", "round", "none"),
        pytest.param("evaluate", "round", "pseudo_residual", marks=pytest.mark.long),
        pytest.param("loss", "round", "none", marks=pytest.mark.long),
        pytest.param("decide", "live", "pseudo_residual", marks=pytest.mark.long),
        ("evaluate", "live", "none"),
        ("loss", "live", "pseudo_residual"),
    ],
)
def test_a_run_decides_on_a_full_disk_what_it_decides_on_an_empty_one(point, trial, objective, disk, tmp_path):
    """Full from the first call of ``decide``, ``evaluate`` or ``loss`` after the first epoch to the end of the run."""
    trials: list[Any] = []

    def fill() -> None:
        if trials and trials[0].session.epoch == 1:
            disk.fill()

    class Policy(Script):
        def decide(self, observation):
            fill()
            return super().decide(observation)

    def evaluate(model):
        if point == "evaluate":
            fill()
        return toy.evaluate(model)

    def loss(model, batch):
        if point == "loss":
            fill()
        return toy.loss(model, batch)

    kind = Policy if point == "decide" else Script
    config = growing(keep_looks=(0.95,), objective=objective, incubation_fraction=0.05)
    recipe = Recipe(config, policy=kind({1: [""], 7: [""]}, trial=trial))
    expected = recipe.build(evaluate=evaluate, loss=loss).train()
    expected.session.finish()
    trials.append(recipe.build(evaluate=evaluate, loss=loss, directory=tmp_path))
    with pytest.warns(RuntimeWarning):
        trials[0].train()
    trials[0].session.finish()
    disk.empty()
    assert trials[0].digest() == expected.digest()
    assert without_notes(trials[0].session.events) == without_notes(expected.session.events)
    notes = [event["text"] for event in trials[0].events("note")]
    assert [sum(name in text for text in notes) for name in ("The logs", "No checkpoint", "kept in memory")] == [
        1,
        1,
        1,
    ]


def test_a_run_resumes_from_the_last_checkpoint_before_the_disk_was_full(disk, tmp_path):
    expected = Recipe().build().train()
    trial = Recipe().build(directory=tmp_path).train(3)
    disk.fill()
    with pytest.warns(RuntimeWarning) as warned:
        trial.train(2)
    disk.empty()
    assert any("No checkpoint was written at step 40" in str(one.message) for one in warned)
    del trial
    resumed = Recipe().build(directory=tmp_path)
    resumed.session.load(tmp_path / "checkpoints")
    assert resumed.session.epoch == 3
    resumed.train()
    assert resumed.digest() == expected.digest()
    assert lines(tmp_path) == by_log(resumed.session.events)


def test_a_place_is_chunked_anew_on_a_full_disk_as_on_an_empty_one(disk, tmp_path):
    """All states that are kept take on its new seeds, wherever they lie."""
    recipe = Recipe(growing(layers={"": 1, "0": 2}, keep_looks=(0.95,)), policy=Script({1: [""]}))

    def run(**session: Any) -> Any:
        trial = recipe.build(**session).train(3)
        if session:
            disk.fill()
        trial.session.rechunk("0", 1)
        trial.train()
        trial.session.rollback()
        disk.empty()
        return trial

    expected = run()
    with pytest.warns(RuntimeWarning, match="kept in memory|The logs|No checkpoint"):
        trial = run(directory=tmp_path)
    assert trial.digest() == expected.digest()
