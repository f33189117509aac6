"""What a run writes down of itself beside its decisions: its model, what its seeds sensed, how its arms learned."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.lifecycle import State
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, growing, timeless, train_from


def _metrics(directory: Path, kind: str) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def _recipe(**settings: Any) -> Recipe:
    return Recipe(growing(layers={"": 1, "0": 2, "2": 3}, **settings))


def test_the_model_and_its_places_are_written_down_before_the_first_step():
    trial = _recipe().build()
    (model,) = trial.events("model")
    assert model["type"] == "Sequential"
    assert model["parameters"] == sum(parameter.numel() for parameter in toy.host().parameters())
    assert [(one["name"], one["type"], one["parameters"]) for one in model["modules"]] == [
        ("0", "Linear", 10),
        ("1", "ReLU", 0),
        ("2", "Linear", 9),
    ]
    places = {one["layer_id"]: one for one in model["places"]}
    assert set(places) == {"", "0", "2"}
    assert (places["0"]["seeds"], places["0"]["outputs"], places["0"]["covers"]) == (2, 2, ["0"])
    assert places[""]["covers"] == []


def test_the_metric_is_written_down_by_its_name():
    (model,) = _recipe().build().events("model")
    assert model["metric"] == "accuracy"

    def r2(model: nn.Module) -> esper.Evaluation:
        losses = (model(toy.DATA.held_x)[:, 0] - toy.DATA.held_x[:, 0]).square()
        return esper.Evaluation(losses=losses, correct=1 - losses / losses.var(), metric="R2")

    def none(model: nn.Module) -> esper.Evaluation:
        return esper.Evaluation(losses=r2(model).losses)

    for evaluate, name in ((r2, "R2"), (none, None)):
        wrapped = esper.wrap(toy.host(), growing())
        optimizer = torch.optim.AdamW(wrapped.parameters())
        session = esper.Session(wrapped, optimizer, loss=lambda m, b: None, evaluate=evaluate, planned_steps=10)
        assert next(event for event in session.events if event["event"] == "model")["metric"] == name


def test_a_span_tells_the_modules_that_it_covers():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3)))
    wrapped = Recipe(growing(layers=["0.0:0.2"]), model=lambda: model).build()
    (place,) = wrapped.events("model")[0]["places"]
    assert (place["kind"], place["covers"]) == ("span", ["0.0", "0.1", "0.2"])


def test_what_seeds_sensed_is_logged_at_every_boundary_and_not_kept_in_memory(tmp_path):
    trial = _recipe(telemetry_rows=16).build(directory=tmp_path).train()
    lines = _metrics(tmp_path, "telemetry")
    assert [line["epoch"] for line in lines] == list(range(1, trial.epochs + 1))
    first = lines[0]["places"]["0"]
    assert len(first["chunk_variance"]) == len(first["inactive_ratio"]) == len(first["gradient_norm"]) == 2
    assert all(value > 0 for value in first["chunk_variance"])
    assert "inactive_ratio" not in lines[0]["places"]["2"]  # no activation follows: not measured
    assert not trial.events("telemetry")


def test_the_log_of_what_was_sensed_is_what_the_places_report():
    trial = Recipe(growing(layers={"0": 2}, telemetry_rows=16)).build()
    for batch in toy.batches(0):
        trial.session.step(batch)
    report = trial.run.places["0"].telemetry.report()
    told = trial.growth.observer.sensed()["0"]
    assert told["chunk_variance"] == pytest.approx(report.chunk_variance, rel=1e-3)
    assert told["gradient_norm"] == pytest.approx(report.gradient_norm, rel=1e-3)
    assert "awake" not in told


def test_seeds_that_do_not_sleep_are_told_by_state(tmp_path):
    recipe = Recipe(growing(layers={"0": 2, "2": 3}), policy=Script({2: [("2", 1)]}))
    recipe.build(directory=tmp_path).train()
    lines = _metrics(tmp_path, "telemetry")
    assert "awake" not in lines[1]["places"]["2"]  # germinated at the end of the second epoch
    assert lines[2]["places"]["2"]["awake"] == {"1": State.GERMINATED}
    assert "awake" not in lines[2]["places"]["0"]


def test_nothing_is_logged_where_nothing_senses(tmp_path):
    Recipe(growing(telemetry_rows=0), policy=Script({})).build(directory=tmp_path).train()
    assert not _metrics(tmp_path, "telemetry")
    assert len(_metrics(tmp_path, "epoch")) == 12


@pytest.mark.parametrize("cut", few([0, 30], [30]), ids=["whole lines", "a last line that was cut"])
def test_a_resumed_run_keeps_what_was_sensed_before_and_has_nothing_twice(cut, tmp_path):
    """Lines after the checkpoint are written again, in their order among the epochs."""
    expected = _recipe().build(directory=tmp_path / "expected", loader=(source := toy.loader()))
    train_from(expected, source)
    first = _recipe().build(directory=tmp_path / "run", loader=(source := toy.loader()))
    for _ in range(3):
        for batch in source:
            first.session.step(batch)
        first.session.after_epoch()
    saved = first.session.save(tmp_path / "saved").parent
    for _ in range(2):
        for batch in source:
            first.session.step(batch)
        first.session.after_epoch()
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(log.read_text()[: -cut or None])
    resumed = _recipe().build(directory=tmp_path / "run", loader=(source := toy.loader()))
    resumed.session.load(saved)
    train_from(resumed, source)
    runs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "expected")
    ]
    assert timeless(runs[0]) == timeless(runs[1])


def test_a_damaged_line_does_not_keep_a_run_from_being_resumed(tmp_path):
    first = _recipe().build(directory=tmp_path, loader=(source := toy.loader()))
    train_from(first, source)
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"telemetry"', b'"tele\xff\xffry"', 1))
    resumed = _recipe().build(directory=tmp_path, loader=toy.loader())
    resumed.session.load(tmp_path / "checkpoints")
    assert len(_metrics(tmp_path, "telemetry")) == len(_metrics(tmp_path, "epoch")) - 1


def test_nothing_is_read_from_the_device_for_a_log_that_nobody_reads(monkeypatch):
    trial = _recipe().build()
    monkeypatch.setattr(trial.growth.observer, "sensed", lambda: pytest.fail("asked what was sensed"))
    trial.train(1)


def test_an_arm_tells_how_it_learned(tmp_path):
    trial = _recipe().build().train()
    (ended,) = trial.events("arm_ended")
    curve = ended["curve"]
    assert len(curve["steps"]) == len(curve["flops"]) == len(curve["train_losses"]) == 20
    assert curve["steps"][-1] == ended["step"]
    assert curve["steps"] == sorted(set(curve["steps"]))
    spent = next(event for event in trial.events("epoch") if event["step"] == trial.events("round_begun")[0]["step"])
    assert curve["flops"][-1] - spent["run_flops"] > ended["arm_flops"]  # the window's own steps came before
    assert curve["flops"] == sorted(curve["flops"])
    assert curve["train_losses"][-1] < curve["train_losses"][0]


def test_the_losses_of_an_arm_are_those_of_its_steps(monkeypatch):
    losses: list[float] = []
    trial = _recipe().build()
    train = trial.run.trainer.train

    def noting(batch: Any, **how: Any) -> Any:
        loss = train(batch, **how)
        if trial.run.arm is not None and how.get("replayed") != (None,):  # not the step that counts FLOPs
            losses.append(float(loss))
        return loss

    monkeypatch.setattr(trial.run.trainer, "train", noting)
    trial.train()
    (ended,) = trial.events("arm_ended")
    means = torch.tensor(losses).view(20, -1).mean(1).tolist()
    assert ended["curve"]["train_losses"] == pytest.approx(means, rel=1e-5)


def test_the_twin_of_a_live_trial_tells_how_it_learned():
    recipe = Recipe(growing(trial="live"), policy=Script({1: [""]}, trial="live"))
    (ended,) = recipe.build().train().events("trial_ended")
    assert ended["curve"]["steps"][-1] - ended["curve"]["steps"][0] < ended["steps"]
    assert len(ended["curve"]["train_losses"]) >= 10


def test_a_gain_and_its_error_are_logged_with_their_z():
    trial = _recipe().build().train()
    trial.session.finish()
    (arm,) = trial.events("arm_ended")
    assert arm["twin_z"] == pytest.approx(arm["gain"] / arm["gain_se"])
    assert arm["gain"] == pytest.approx(arm["twin_gate_loss"] - arm["gate_loss"])
    look = trial.events("keep_look")[0]
    assert look["ablation_z"] == pytest.approx(look["ablation_gain"] / look["ablation_gain_se"])


def test_the_position_of_a_run_and_of_its_arms():
    seen: list[Any] = []
    trial = _recipe().build(on_event=lambda event: seen.append(trial.session.position) if "arm" in event else None)
    assert trial.session.position == (0, 120, 0, None, 0, None)
    trial.train()
    during = [one for one in seen if one.arm is not None]
    assert {one.step for one in during} == {50}  # the run itself waits at the end of its window
    assert {one.arm for one in during} == {"round1/model/bottleneck_mlp"}
    assert during[-1].arm_step == during[-1].arm_steps == 40
    assert trial.session.position == (120, 120, 12, None, 0, None)


def test_another_thread_may_ask_for_the_position_at_any_time():
    """A display does, while arms run."""
    trial, is_over, seen = _recipe().build(), threading.Event(), []

    def watch() -> None:
        while not is_over.wait(0.001):
            seen.append(trial.session.position)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        trial.train()
    finally:
        is_over.set()
        watcher.join()
    steps = [one.step for one in seen]
    assert steps == sorted(steps)
    assert any(one.arm for one in seen)


def test_an_arm_that_begins_while_the_position_is_read_is_not_taken_for_the_run():
    class Begins:
        """A window whose capture is there from the second time on that it is asked for."""

        batches, arm_step = [None] * 40, 1
        asked = 0

        @property
        def run(self):
            self.asked += 1
            return None if self.asked == 1 else {"clock": {"step": 50, "epoch": 5}}

    trial = _recipe().build()
    trial.growth.rounds.current = Begins()
    assert trial.session.position.step == 50


def test_counting_a_place_that_is_not_called_leaves_its_columns_out(tmp_path):
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    config = esper.GrowthConfig(layers={"used": 1, "idle": 1})
    Recipe(config, model=Skips, policy=Script({})).build(directory=tmp_path).train(1)
    assert set(_metrics(tmp_path, "telemetry")[0]["places"]) == {"used"}
