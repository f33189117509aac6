"""How the process is doing is told at boundaries and now and then, and changes nothing of what is trained."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.events import STEP_BOUNDS_S
from esper.runtime.record import vitals
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing, timeless, train_from

RECIPE = Recipe(growing(layers=["", "0"]), policy=Script({1: [""]}))


def told(recipe: Recipe = RECIPE, **session: Any) -> tuple[toy.Trial, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    trial = recipe.build(on_event=heard.append, **session).train()
    trial.session.finish()
    return trial, heard


def of(heard: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in heard if line["event"] == kind]


def test_every_boundary_tells_steps_and_memory():
    trial, heard = told()
    lines = of(heard, "vitals")
    assert [line["step"] for line in lines] == [line["step"] for line in of(heard, "epoch")]
    for line in lines:
        assert line["steps"] == sum(line["step_times"]) == toy.STEPS_PER_EPOCH
        assert len(line["step_times"]) == len(STEP_BOUNDS_S) + 1
        assert 0 < line["step_seconds"] <= line["seconds"]
        assert 10**7 < line["memory_bytes"] < 10**11
        assert line["device_memory_bytes"] is line["gpu_utilisation"] is None
    grown = sum(place.arena.num_parameters for place in trial.run.places.values())
    assert lines[-1]["grown_parameters"] == grown > 0


def test_alphas_of_live_grafts_are_told_by_place():
    _, heard = told(Recipe(growing(layers=["", "0"], ramp_fraction=0.3), policy=Script({1: ["0"]}, trial="live")))
    grafts = [line["grafts"] for line in of(heard, "vitals")]
    alphas = [one["0"]["alpha"] for one in grafts if one]
    assert {} in grafts
    assert alphas == sorted(alphas)
    assert any(0 < alpha < 1 for alpha in alphas)
    assert all(set(one) <= {"0"} for one in grafts)


def test_within_a_long_epoch_it_is_told_too_and_in_the_steps_of_an_arm(monkeypatch):
    monkeypatch.setattr(vitals, "EVERY_S", 0.0)
    trial, heard = told()
    lines = of(heard, "vitals")
    assert len(lines) > trial.session.step_count
    assert sum(line["steps"] for line in lines) == trial.session.step_count
    assert any(line["arm"] is not None for line in lines)
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)  # of the run, also where an arm replays earlier ones
    assert all(("grafts" in line) == (line["step"] % 10 == 0) or not line.get("grafts") for line in lines)


def test_without_anybody_who_reads_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(vitals, "EVERY_S", 0.0)
    monkeypatch.setattr(vitals, "resident_bytes", lambda: pytest.fail("asked for memory"))
    RECIPE.build().train(3)


def test_it_changes_nothing_that_is_trained_or_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(vitals, "EVERY_S", 0.0)
    watched, _ = told(directory=tmp_path)
    monkeypatch.setattr(vitals.Pulse, "write", lambda *_: None)
    monkeypatch.setattr(vitals.Pulse, "write_if_due", lambda *_: None)
    alone, _ = told()
    assert watched.digest() == alone.digest()
    assert timeless(watched.session.events) == timeless(alone.session.events)
    assert not [line for line in watched.session.events if line["event"] in ("vitals", "checkpoint")]


def test_the_time_of_a_step_is_its_own():
    """Not that of a listener at the end of the step, nor of an evaluation."""
    batch = next(iter(toy.batches(0)))

    def slow(line: dict[str, Any]) -> None:
        time.sleep(0.2)

    heard: list[dict[str, Any]] = []
    trial = Recipe(growing(), policy=Script({})).build(on_event=[slow, heard.append])
    trial.session.step(batch)
    trial.session.after_epoch()
    trial.session.step(batch)
    trial.session.after_epoch()
    _, second = of(heard, "vitals")
    assert second["step_seconds"] < 0.15
    assert second["seconds"] > 0.2


def test_in_a_loop_of_ones_own_a_step_is_from_one_call_to_the_next():
    heard: list[dict[str, Any]] = []

    def train_step(batch: Any) -> Any:
        trial.optimizer.zero_grad()
        value = toy.loss(trial.model, batch)
        value.backward()
        trial.optimizer.step()
        return value

    recipe = Recipe(growing(), policy=Script({}), scheduler=None)
    trial = recipe.build(loss=None, train_step=train_step, on_event=heard.append)
    for batch in list(toy.batches(0))[:3]:
        time.sleep(0.03)
        trial.session.after_step(batch, train_step(batch))
    trial.session.after_epoch()
    (line,) = of(heard, "vitals")
    assert line["steps"] == 3
    assert line["step_seconds"] > 0.09


def test_a_checkpoint_is_told_with_its_size_and_place(tmp_path):
    trial, heard = told(directory=tmp_path)
    lines = of(heard, "checkpoint")
    assert len(lines) >= trial.epochs
    last = tmp_path / lines[-1]["where"]
    assert lines[-1]["bytes"] == sum(file.stat().st_size for file in last.iterdir())
    assert lines[-1]["seconds"] > 0
    elsewhere = trial.session.save(tmp_path.parent / "elsewhere")
    assert of(heard, "checkpoint")[-1]["where"] == str(elsewhere)


def test_a_resumed_run_keeps_the_lines_up_to_its_checkpoint(tmp_path):
    def lines(log: str, kind: str) -> list[dict[str, Any]]:
        return of([json.loads(line) for line in (tmp_path / f"{log}.jsonl").read_text().splitlines()], kind)

    first = RECIPE.build(directory=tmp_path, loader=(source := toy.loader()))
    for _ in range(4):
        for batch in source:
            first.session.step(batch)
        first.session.after_epoch()
    before, checkpoints = lines("metrics", "vitals"), lines("audit", "checkpoint")
    assert len(before) == len(checkpoints) == 4
    first.run.pulse.beat(first.run.step + 5, time.perf_counter())
    first.run.pulse.write(first.run.step + 5)  # of steps that will be taken again
    first.run.journal.save()
    assert len(lines("metrics", "vitals")) == 5
    resumed = RECIPE.build(directory=tmp_path, loader=(source := toy.loader()))
    resumed.session.load(tmp_path / "checkpoints")
    assert lines("metrics", "vitals") == before
    assert lines("audit", "checkpoint") == checkpoints
    train_from(resumed, source)
    assert [line["step"] for line in lines("metrics", "vitals")] == [10 * epoch for epoch in range(1, 13)]


def test_what_is_off_is_not_imported():
    code = """
import sys
from tests.runtime.toy import Recipe
trial = Recipe().build(on_event=lambda line: None).train(2)
import esper.cli.main, esper.cli.command_line
print(sorted({"prometheus_client", "msgspec", "esper.observability.metrics"} & set(sys.modules)))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
