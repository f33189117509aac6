"""Growing by hand: what ``germinate``, ``cancel`` and ``rechunk`` do, and what they refuse."""

from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.commands import Answer, Command
from esper.contracts.lifecycle import State
from esper.kasmina.host.wrapping import host_state_dict
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing


def build(**settings: Any) -> Trial:
    return Recipe(growing(**{"layers": {"": 1, "2": 3}} | settings), policy=Script({})).build()


class TestGerminate:
    def test_answers_and_lets_the_seed_wait_for_a_live_trial(self):
        trial = build()
        answer = trial.session.germinate("2", 1, settings={"hidden": 2})
        assert answer == Answer(True, version=1, versions=(1,))
        assert trial.state("2", 1) is State.GERMINATED
        (event,) = trial.events("transition")
        assert (event["who"], event["version"]) == ("user", 1)
        trial.train(1)
        assert trial.state("2", 1) is State.GRAFTING

    def test_sizes_the_blueprint_as_the_budgets_allow(self):
        trial = build(capacity_per_round=3.0).train(1)
        trial.session.germinate("", "all")
        (one,) = trial.run.books.alive.values()
        host = sum(parameter.numel() for parameter in toy.host().parameters())
        weights = 14  # multiply-adds of the host for a sample
        assert trial.run.tracing.multiply_adds == weights * toy.BATCH
        hidden = one.settings["hidden"]
        assert hidden * (toy.FEATURES + toy.CLASSES) <= 3 * weights + host
        assert hidden > 1

    def test_takes_the_strategy(self):
        trial = build()
        trial.session.germinate("", "all", strategy="grad_norm_gated", settings={"hidden": 2})
        trial.train(6)
        (one,) = trial.run.books.alive.values()
        assert one.strategy == "grad_norm_gated"
        trial.session.finish()
        assert trial.session.field_reports[0].strategy == "grad_norm_gated"

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (("nowhere", 0), esper.ConfigError, "There is no place 'nowhere'"),
            (("2", 3), esper.TransitionError, "has no seed 3. It has seeds 0 to 2"),
            (("2", 0, "bottleneck_mpl"), esper.ConfigError, "Did you mean 'bottleneck_mlp'"),
            (("2", 0, "bottleneck_mlp", "fixed_rampp"), esper.ConfigError, "fixed_ramp"),
            (("2", 0, "bottleneck_mlp", "fixed_ramp", {"hiden": 2}), esper.ConfigError, "Did you mean 'hidden'"),
        ],
    )
    def test_refuses_what_does_not_exist_and_names_what_does(self, arguments, error, message):
        trial = build()
        before = trial.digest()
        with pytest.raises(error, match=message):
            trial.session.germinate(*arguments)
        assert trial.digest() == before
        assert trial.session.field_reports == []

    def test_refuses_a_seed_that_is_busy_and_logs_it(self):
        trial = build()
        trial.session.germinate("2", 1, settings={"hidden": 2})
        with pytest.raises(esper.TransitionError, match=r"cannot go from GERMINATED to GERMINATED\. Allowed from here"):
            trial.session.germinate("2", 1, settings={"hidden": 2})
        assert len(trial.events("refused")) == 1

    def test_is_over_when_the_session_is(self):
        trial = build()
        trial.session.finish()
        for call in (
            lambda: trial.session.germinate("", "all", settings={"hidden": 2}),
            lambda: trial.session.cancel("", "all"),
            lambda: trial.session.rollback(),
            lambda: trial.session.rechunk("2", 1),
        ):
            with pytest.raises(esper.TransitionError, match="finished"):
                call()
        assert not trial.session.submit(Script({}).command("")).accepted


class Words(nn.Module):
    """A lookup whose layout only a step shows: here every sample is one word."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.last = nn.Linear(8, toy.CLASSES)

    def forward(self, x):
        return self.last(self.table(x[:, 0].abs().mul(4).long().clamp(max=15)))


@pytest.mark.parametrize(("blueprint", "fits"), [("sliding_conv", False), ("bottleneck_mlp", True)])
def test_what_the_first_step_shows_not_to_fit_is_culled_with_the_reason(blueprint, fits):
    config = growing(layers=["table"], round_fraction=0.1, keep_looks=(0.95,))
    trial = Recipe(config, model=Words, policy=Script({})).build()
    assert trial.session.germinate("table", 0, blueprint).accepted
    trial.train(1)
    assert trial.state("table") is (State.GRAFTING if fits else State.CULLED)
    reasons = [report.reason for report in trial.session.field_reports]
    fault = "sliding_conv does not fit: it grows on tokens, and the place has features"
    assert reasons == ([] if fits else [fault])
    trial.train(4)


VETOES = {
    "Parameters": ({"max_growth": 0.1}, {}),
    "Memory": ({"max_memory": 0.1}, {}),
    "Confidence": ({"min_confidence": 3, "blueprints": ("bottleneck_mlp",)}, {"blueprint": "affine", "settings": {}}),
    "Concurrency": ({"max_active_seeds": 1}, {}),
}


class TestTheShield:
    @pytest.mark.parametrize("rule", VETOES)
    @pytest.mark.parametrize("who", ["by hand", "by command"])
    def test_vetoes_whoever_asks_and_the_log_says_why(self, rule, who):
        settings, changes = VETOES[rule]
        trial = build(**settings)
        if rule == "Concurrency":
            assert trial.session.germinate("2", 0, settings={"hidden": 2}).accepted
        before = trial.digest()
        if who == "by hand":
            with pytest.raises(esper.TransitionError, match=rule):
                trial.session.germinate("", "all", **{"settings": {"hidden": 8}} | changes)
        else:
            blueprint = changes.get("blueprint", "bottleneck_mlp")
            command = Command(
                "", "all", State.GERMINATED, blueprint=blueprint, settings=changes.get("settings", {"hidden": 8})
            )
            answer = trial.session.submit(command)
            assert not answer.accepted
            assert rule in answer.reason
        (veto,) = trial.events("veto")
        assert rule in veto["reason"]
        assert trial.digest() == before

    def test_counts_what_waits_to_be_grown(self):
        """Two grafts that fit one by one, and not together."""
        size = 8 * (toy.FEATURES + 1) + 8 * toy.CLASSES + toy.CLASSES
        host = sum(parameter.numel() for parameter in toy.host().parameters())
        trial = build(layers={"": 1, "2": 1}, max_growth=1.5 * size / host)
        assert trial.session.germinate("", "all", settings={"hidden": 8}).accepted
        with pytest.raises(esper.TransitionError, match="Parameters"):
            trial.session.germinate("2", "all", settings={"hidden": 8})

    def test_counts_only_the_largest_candidate_of_a_round(self):
        size = 8 * (toy.FEATURES + 1) + 8 * toy.CLASSES + toy.CLASSES
        host = sum(parameter.numel() for parameter in toy.host().parameters())
        trial = build(layers={"": 1, "2": 1}, max_growth=1.5 * size / host)
        assert trial.session.submit(Script({}).command("")).accepted
        assert trial.session.submit(Script({}).command("2")).accepted

    def test_lets_a_place_rest_that_failed_again_and_again(self):
        trial = build(max_failures=1, embargo_epochs=0)
        trial.session.germinate("", "all", settings={"hidden": 2})
        assert trial.session.submit(Command("", "all", State.CULLED)).accepted
        trial.train(2)
        assert trial.state() is State.DORMANT
        with pytest.raises(esper.TransitionError, match="Failures"):
            trial.session.germinate("", "all", settings={"hidden": 2})


def test_cancel_refuses_what_does_not_grow_and_names_what_is_allowed():
    with pytest.raises(
        esper.TransitionError, match=r"cannot go from DORMANT to CANCELLED\. Allowed from here: GERMINATED"
    ):
        build().session.cancel("2", 0)


class TestRechunk:
    def test_keeps_what_the_place_computes_has_sensed_and_has_fossilised(self):
        config = growing(layers={"": 3}, keep_looks=(0.5,), freeze="at_once")
        trial = Recipe(config, policy=Script({1: [""]})).build().train(6)
        place = trial.run.places[""]
        assert place.arena.fossils
        list(map(trial.session.step, list(toy.batches(7))[:3]))
        expected = trial.model(toy.DATA.held_x)
        sums = place.telemetry.sums.clone()
        trial.session.rechunk("", 2)
        assert place.state.num_seeds == len(place.report().states) == 2
        assert torch.equal(place.telemetry.sums, sums)
        assert torch.equal(trial.model(toy.DATA.held_x), expected)
        trial.train()
        trial.session.finish()

    def test_is_refused_while_a_seed_is_not_dormant(self):
        trial = build()
        trial.session.germinate("2", 0, settings={"hidden": 2})
        with pytest.raises(esper.TransitionError, match="not DORMANT"):
            trial.session.rechunk("2", 2)
        with pytest.raises(esper.ConfigError):
            trial.session.rechunk("", 9)
        with pytest.raises(esper.ConfigError, match="There is no place"):
            trial.session.rechunk("nowhere", 1)

    def test_goes_through_a_round_and_a_checkpoint(self, tmp_path):
        """A place may be chunked anew while another one is on trial; a resumed run has the new seeds."""
        trial = build()
        trial.session.submit(Script({}).command(""))
        trial.train(1)
        assert trial.rounds.current is not None
        trial.session.rechunk("2", 2)
        bare = build().train(1)
        trial.train(1)
        bare.train(1)
        for name, value in host_state_dict(bare.model).items():
            assert torch.equal(host_state_dict(trial.model)[name], value)
        trial.session.save(tmp_path)
        resumed = build()
        resumed.session.load(tmp_path)
        assert resumed.run.places["2"].state.num_seeds == 2
        for one in (trial, resumed):
            one.train()
            one.session.finish()
        assert resumed.digest() == trial.digest()
