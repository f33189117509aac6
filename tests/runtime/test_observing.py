"""What the controller is shown."""

from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


class Sees(Script):
    """A policy that keeps what it saw."""

    def __init__(self, plan: dict[int, Any] | None = None) -> None:
        super().__init__(plan or {}, hidden=4)
        object.__setattr__(self, "seen", [])

    def decide(self, observation: Observation):
        self.seen.append(observation)
        return super().decide(observation)


def run(plan: dict[int, Any] | None = None, epochs: int = 2, **settings: Any) -> tuple[Trial, list[Observation]]:
    policy = Sees(plan)
    session = settings.pop("session", {})
    trial = Recipe(growing(**{"layers": {"0": 2, "2": 3}} | settings), policy=policy).build(**session)
    return trial.train(epochs), policy.seen


def test_losses_metrics_and_the_size_of_the_host():
    trial, seen = run()
    now = seen[-1]
    assert (now.step, now.planned_steps, now.epoch) == (20, 120, 2)
    assert len(now.train_losses) == len(now.select_losses) == len(now.select_metrics) == 2
    measured = trial.events("epoch")
    assert list(now.select_metrics) == [event["val_metric"] for event in measured]
    assert now.host_parameters == sum(parameter.numel() for parameter in toy.host().parameters())
    assert now.host_multiply_adds == toy.BATCH * (toy.FEATURES * 2 + 2 * toy.CLASSES)
    assert now.grown_multiply_adds == now.grown_parameters == 0


def test_places_with_rows_drift_and_what_their_seeds_sensed():
    _, seen = run(telemetry_rows=16)
    first, second = seen[-1].places
    assert (first.layer_id, second.layer_id) == ("0", "2")
    assert first.rows == second.rows == toy.BATCH
    assert len(first.seeds.chunk_variance) == 2
    assert len(second.seeds.gradient_norm) == 3
    assert first.seeds.inactive_ratio is not None  # ReLU follows: the trace saw it
    assert second.seeds.inactive_ratio is None
    assert 0 < first.drift < 10
    assert first.gradient_noise > 0
    assert seen[0].places[0].drift is None


def test_drift_is_relative_to_the_last_good_state():
    trial, _ = run()
    with torch.no_grad():
        trial.model[0].weight.mul_(1.5)
        trial.model[0].bias.mul_(1.5)
    (report, other) = trial.growth.observer.observe().places
    assert report.drift == pytest.approx(0.5, rel=1e-5)
    assert other.drift == 0


def test_what_is_sensed_begins_anew_at_every_boundary():
    trial, seen = run(epochs=3)
    assert all(float(place.telemetry.sums.abs().sum()) == 0 for place in trial.run.places.values())
    assert all(one.places[0].seeds.chunk_variance is not None for one in seen)


def test_gradient_norms_are_without_the_scale_of_a_scaler():
    scaled = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=10**6)
    plain, observed = run()[1], run(session={"scaler": scaled})[1]
    for one, other in zip(plain[-1].places, observed[-1].places, strict=True):
        assert other.seeds.gradient_norm == pytest.approx(one.seeds.gradient_norm, rel=1e-3)


def test_lifecycles_under_way_those_that_ended_and_what_they_cost():
    trial, _ = run({1: ["2"]}, epochs=2, gate_z=1e9)
    now = trial.growth.observer.observe()
    assert (now.active, now.rounds_done, list(now.reports)) == (1, 1, [])
    trial.train(4)
    now = trial.growth.observer.observe()
    assert now.active == 0
    assert [report.outcome for report in now.reports] == ["CULLED"]
    trial, _ = run({1: [""]}, epochs=5, layers=[""])
    assert trial.state() is State.FINE_TUNING
    now = trial.growth.observer.observe()
    (graft,) = trial.run.places[""].arena.live
    assert now.active == 0  # it is kept, not on trial
    assert now.grown_parameters == now.places[0].grown_parameters == graft.num_parameters
    assert now.grown_multiply_adds == graft.blueprint.multiply_adds(graft.ports) * toy.BATCH


class Sometimes(nn.Module):
    """Calls one of its layers only where asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(toy.FEATURES, toy.CLASSES)
        self.aside = nn.Linear(toy.CLASSES, toy.CLASSES)
        self.never = nn.Linear(toy.CLASSES, toy.CLASSES)

    def forward(self, x):
        y = self.body(x)
        return self.aside(y) if self.training else y


def test_a_place_that_is_never_called_is_told_by_name():
    """In a training step, and in evaluate while it holds a graft; each once."""
    config = growing(layers=["body", "aside", "never"])
    trial = Recipe(config, model=Sometimes, policy=Script({1: ["aside"], 6: ["aside"]}, hidden=2)).build().train()
    notes = [event["text"] for event in trial.events("note") if "Never called" in event["text"]]
    assert notes == [
        "Never called in a training step, so that nothing can grow there: 'never'.",
        "Never called in evaluate, so that nothing can grow there: 'aside'.",
    ]


class Skipping(nn.Module):
    """Skips a layer in its first calls, as layers that are dropped at random may."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(toy.FEATURES, toy.CLASSES)
        self.skipped = nn.Linear(toy.CLASSES, toy.CLASSES)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.body(x)
        return y if self.calls < 4 else self.skipped(y)


@pytest.mark.parametrize("telemetry_rows", [0, 16])
def test_no_arm_is_trained_at_a_place_that_no_step_calls(telemetry_rows):
    config = growing(layers=["body", "never"], telemetry_rows=telemetry_rows)
    trial = Recipe(config, model=Sometimes, policy=Script({1: ["never"]}, hidden=2)).build().train(4)
    assert not trial.events("round_begun")
    assert [place.layer_id for place in trial.growth.observer.observe().places] == ["body"]
    answer = trial.session.submit(Script({}).command("never"))
    assert answer.reason == "'never' cannot grow: no training step calls it."


def test_what_was_germinated_there_before_the_first_step_is_taken_back():
    trial = Recipe(growing(layers=["body", "never"]), model=Sometimes).build()
    assert trial.session.submit(Script({}).command("never")).accepted
    trial.train(4)
    assert not trial.events("round_begun")
    reasons = [event["reason"] for event in trial.events("transition")]
    assert "'never' cannot grow: no training step calls it" in reasons


def test_a_place_that_a_later_step_calls_may_grow():
    config = growing(layers=["body", "skipped"], telemetry_rows=16)
    trial = Recipe(config, model=Skipping, policy=Script({1: ["skipped"]}, hidden=2)).build().train(4)
    assert "Never called in a training step" in trial.events("note")[-1]["text"]
    assert trial.events("round_begun")


def test_a_resumed_run_shows_the_same(tmp_path):
    trial, _ = run(epochs=2)
    for batch in list(toy.batches(2))[:5]:
        trial.session.step(batch)
    trial.session.save(tmp_path)
    resumed = Recipe(growing(layers={"0": 2, "2": 3}), policy=Sees()).build()
    resumed.session.load(tmp_path)
    assert resumed.growth.observer.observe() == trial.growth.observer.observe()


def test_strategies_of_another_run_are_refused(tmp_path):
    from esper.kasmina.grafts import strategies

    trial, _ = run()
    trial.session.save(tmp_path)
    resumed = Recipe(growing(layers={"0": 2, "2": 3}), policy=Sees()).build()
    known = dict(strategies.STRATEGIES)
    del strategies.STRATEGIES[next(iter(known))]
    try:
        with pytest.raises(esper.CheckpointError, match="grafting strategies"):
            resumed.session.load(tmp_path)
    finally:  # in the order that there was: codes in checkpoints follow it
        strategies.STRATEGIES.clear()
        strategies.STRATEGIES.update(known)
