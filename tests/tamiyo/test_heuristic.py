from dataclasses import dataclass, replace

import pytest

from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.selection import SELECTIONS
from tests.tamiyo.seen import FALLING, NOW, PLACES, busy, place, report, sensed


def decide(config: GrowthConfig | None = None, **seen):
    return HeuristicPolicy(config or GrowthConfig()).decide(replace(NOW, **seen))


def test_a_stall_begins_a_round():
    commands = decide()
    assert [command.layer_id for command in commands] == ["", "0:2", "2:4", "0"]
    assert {command.reason for command in commands} == {"the held-out loss has stalled"}
    assert {(one.target, one.seed_id, one.trial) for one in commands} == {(State.GERMINATED, "all", "round")}


def test_without_a_reason_it_does_nothing():
    assert decide(select_losses=FALLING, step=99) == []


def test_candidates_are_limited():
    assert len(decide(GrowthConfig(max_candidates=2))) == 2
    assert len(decide(GrowthConfig(max_active_seeds=3), active=1)) == 2


def test_a_live_trial_is_of_the_longest_path_alone():
    """Grafts that grow jointly cannot be told apart."""
    commands = decide(GrowthConfig(trial="live"))
    assert [(command.layer_id, command.trial) for command in commands] == [("", "live")]


def test_a_candidate_is_as_large_as_capacity_per_round_allows():
    for capacity in (0.5, 1.0):
        for command in decide(GrowthConfig(capacity_per_round=capacity)):
            one = next(one for one in PLACES if one.layer_id == command.layer_id)
            per_unit = one.inputs + one.outputs + 1
            assert command.settings["hidden"] == (int(capacity * 682) - one.outputs) // per_unit


def test_a_full_model_is_offered_nothing():
    assert decide(GrowthConfig(max_growth=1.5), grown_parameters=1023) == []


def test_places_under_way_are_passed_over():
    assert "" not in [
        one.layer_id for one in decide(places=[busy(one) if one.kind == "model" else one for one in PLACES])
    ]


def test_places_that_failed_too_often_make_way_for_others():
    lost = [report(layer_id="0")] * 3
    assert [one.layer_id for one in decide(reports=lost)][-1] == "2"
    assert [one.layer_id for one in decide(GrowthConfig(max_failures=4), reports=lost)][-1] == "0"


def test_the_configured_selection_chooses_the_blueprint():
    """Each differs from the first of the list in what it makes of this history."""
    config = GrowthConfig(blueprints=("low_rank", "bottleneck_mlp", "glu", "affine"))
    history = [
        report("glu", gate_loss=0.5, twin_gate_loss=1.0),
        report("low_rank", gate_loss=0.9, twin_gate_loss=1.0, metric_gain=0.0),
        report("bottleneck_mlp", gate_loss=0.8, twin_gate_loss=1.0, metric_gain=0.1),
        report("bottleneck_mlp", gate_loss=0.8, twin_gate_loss=1.0),
        *[report("low_rank", outcome="FOSSILIZED", layer_id="7")] * 20,
    ]
    square = (place("5", "layer", 500, inputs=8, outputs=8),)
    chosen = {
        name: decide(replace(config, selection=name), places=square, reports=history)[0].blueprint
        for name in SELECTIONS
    }
    assert chosen == {
        "performance": "glu",
        "stability": "bottleneck_mlp",
        "accuracy": "bottleneck_mlp",
        "risk": "low_rank",
        "novelty": "affine",
        "size": "affine",
        "cost": "affine",
    }


def test_blueprints_take_turns_as_long_as_nothing_was_measured():
    config = GrowthConfig(blueprints=("low_rank", "bottleneck_mlp"))
    assert [one.blueprint for one in decide(config)] == ["low_rank", "bottleneck_mlp"] * 2
    cancelled = [report("low_rank", outcome="CANCELLED")]
    assert [one.blueprint for one in decide(config, reports=cancelled)] == ["low_rank", "bottleneck_mlp"] * 2
    helped = [report("bottleneck_mlp", gate_loss=0.9, twin_gate_loss=1.0)]
    assert {one.blueprint for one in decide(config, reports=helped)} == {"bottleneck_mlp"}
    harmed = [report("bottleneck_mlp", gate_loss=1.1, twin_gate_loss=1.0)]
    assert {one.blueprint for one in decide(config, reports=harmed)} == {"low_rank"}
    by_size = replace(config, selection="size")  # it has a preference
    for command in decide(by_size):
        alone = [one for one in PLACES if one.layer_id == command.layer_id]
        assert [one.blueprint for one in decide(by_size, places=alone)] == [command.blueprint]


def test_conditions_at_the_place_choose_the_strategy():
    commands = decide(places=[replace(one, drift=0.2 if one.kind == "model" else None) for one in PLACES])
    assert [command.strategy for command in commands] == ["drift_controlled"] + ["fixed_ramp"] * 3
    assert {one.strategy for one in decide(GrowthConfig(strategy="performance_linked"))} == {"performance_linked"}


def test_a_silent_chunk_grows_alone():
    ill = replace(PLACES[0], seeds=sensed(variance=[1.0, 0.0, 1.0, 1.0]))
    last = decide(places=(ill, *PLACES[1:]))[-1]
    assert (last.layer_id, last.seed_id) == ("0", 1)


@dataclass(frozen=True)
class Even(BottleneckMLP):
    """Fits an even number of channels only."""

    def misfit(self, ports: Ports) -> str | None:
        return "it needs an even number of channels" if ports.outputs % 2 else super().misfit(ports)


def test_what_fits_the_layer_but_not_its_chunk_grows_over_the_layer(monkeypatch):
    monkeypatch.setattr("esper.tamiyo.sizing.make_blueprint", lambda blueprint_id, settings: Even(**settings))
    for silent, seed_id in (([1.0, 0.0, 1.0, 1.0], "all"), ([0.0, 1.0, 1.0, 1.0], 0)):  # chunks of 3 and of 2 channels
        ill = place("0", outputs=10, seeds=sensed(variance=silent))
        assert [command.seed_id for command in decide(places=(ill,))] == [seed_id]


def test_an_unknown_blueprint_is_refused_by_name():
    with pytest.raises(ConfigError, match="no blueprint 'bottelneck'"):
        decide(GrowthConfig(blueprints=("bottelneck",)))
