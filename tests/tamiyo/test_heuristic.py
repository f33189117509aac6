import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport
from esper.tamiyo.heuristic import HeuristicPolicy, has_stalled, overfits, shortlist


def place(layer_id: str, kind: str, host_parameters: int, **changes) -> PlaceReport:
    values = {"num_seeds": 4, "is_dormant": True, "is_under_embargo": False, "inputs": 64, "outputs": 10}
    return PlaceReport(layer_id=layer_id, kind=kind, host_parameters=host_parameters, **(values | changes))


PLACES = (
    place("0", "layer", 520),
    place("2", "layer", 72, inputs=8, outputs=8),
    place("2:4", "span", 162, inputs=8),
    place("", "model", 682),
    place("0:2", "span", 592, outputs=8),
)
STALLED = (1.0, 0.9, 0.8, 0.8, 0.8, 0.8)
FALLING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
NOW = Observation(
    step=80,
    planned_steps=1000,
    epoch=6,
    train_losses=FALLING,
    select_losses=STALLED,
    places=PLACES,
    rounds_done=0,
    host_parameters=682,
    grown_parameters=0,
)


def decide(config: GrowthConfig | None = None, **seen):
    return HeuristicPolicy(config or GrowthConfig()).decide(replace(NOW, **seen))


# When


@pytest.mark.parametrize("step", [50, 80, 400])
def test_a_stall_inside_the_window_begins_a_round(step):
    commands = decide(step=step)
    assert commands
    assert {command.reason for command in commands} == {"the held-out loss has stalled"}
    assert {(command.target, command.seed_id) for command in commands} == {(State.GERMINATED, "all")}


@pytest.mark.parametrize("step", [0, 49, 401, 600, 1000])
def test_nothing_germinates_outside_the_window(step):
    assert decide(step=step) == []


def test_without_a_trigger_it_waits_for_grow_at_and_no_longer():
    assert decide(select_losses=FALLING, step=99) == []
    commands = decide(select_losses=FALLING, step=100)
    assert {command.reason for command in commands} == {"the growth window is open"}


@pytest.mark.parametrize(("rounds_done", "begins"), [(0, True), (1, True), (2, False), (3, False)])
def test_rounds_are_limited(rounds_done, begins):
    assert bool(decide(GrowthConfig(max_rounds=2), rounds_done=rounds_done, step=400)) is begins


def test_no_rounds_never_grow():
    assert decide(GrowthConfig(max_rounds=0)) == []


def test_an_overfitting_run_is_refused():
    rising = tuple(reversed(FALLING))
    assert decide(train_losses=FALLING, select_losses=rising, step=200) == []
    assert decide(train_losses=rising, select_losses=rising, step=200)  # it diverges, but it does not overfit


def test_no_round_begins_while_a_place_is_under_embargo():
    lost = replace(PLACES[0], is_dormant=False, is_under_embargo=True)
    assert decide(places=(lost, *PLACES[1:])) == []


@given(st.floats(0, 1), st.integers(0, 3), st.lists(st.floats(0.01, 10), max_size=12))
def test_it_never_germinates_where_it_must_not(fraction, rounds_done, losses):
    config = GrowthConfig()
    commands = decide(config, step=int(fraction * 1000), rounds_done=rounds_done, select_losses=losses)
    if int(fraction * 1000) / 1000 < config.grow_after or int(fraction * 1000) / 1000 > config.grow_until:
        assert commands == []
    if rounds_done >= config.max_rounds or overfits(NOW.train_losses, losses, config.patience):
        assert commands == []


# A stall


@pytest.mark.parametrize(
    ("losses", "stalled"),
    [
        ([], False),
        ([1.0, 1.0, 1.0], False),  # too short to tell over three epochs
        ([1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.99, 0.98, 0.975], True),  # 2.5 % in three epochs
        ([1.0, 0.99, 0.98, 0.965], False),  # 3.5 %
        ([9.0, 1.0, 1.1, 1.0, 1.2], True),  # only the last epochs count
        ([1.0, 1.2, 1.4, 1.6], True),
        ([-1.0, -1.0, -1.0, -1.01], True),  # a log-likelihood may be negative
        ([-1.0, -1.0, -1.0, -1.1], False),
        ([1.0, 1.0, 1.0, math.nan], False),
    ],
)
def test_a_loss_that_improves_by_less_than_min_delta_has_stalled(losses, stalled):
    assert has_stalled(losses, patience=3, min_delta=0.01) is stalled


def test_overfitting_needs_both_curves():
    down, up = [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]
    assert overfits(down, up, patience=3)
    assert not overfits(up, up, patience=3)
    assert not overfits(down, down, patience=3)
    assert not overfits(down[1:], up[1:], patience=3)


# Where and how much


def test_the_shortlist_has_paths_by_size_and_one_layer():
    assert [one.layer_id for one in shortlist(PLACES, 4)] == ["", "0:2", "2:4", "0"]
    assert [one.layer_id for one in shortlist(PLACES, 3)] == ["", "0:2", "0"]
    assert [one.layer_id for one in shortlist(PLACES, 2)] == ["", "0"]


def test_places_under_way_are_not_on_it():
    busy = [replace(one, is_dormant=one.layer_id != "") for one in PLACES]
    assert "" not in [one.layer_id for one in shortlist(busy, 4)]
    assert shortlist([replace(one, is_dormant=False) for one in PLACES], 4) == []


def test_a_host_without_paths_offers_layers():
    layers = [one for one in PLACES if one.kind == "layer"]
    assert [one.layer_id for one in shortlist(layers, 4)] == ["0", "2"]


def test_candidates_come_in_the_order_of_the_shortlist_and_take_turns_with_blueprints():
    commands = decide(GrowthConfig(blueprints=("placebo", "random_frozen")))
    assert [command.layer_id for command in commands] == ["", "0:2", "2:4", "0"]
    assert [command.blueprint for command in commands] == ["placebo", "random_frozen"] * 2


def test_candidates_are_limited():
    assert len(decide(GrowthConfig(max_candidates=2))) == 2


def test_a_candidate_is_as_large_as_capacity_per_round_allows():
    for capacity in (0.5, 1.0):
        for command in decide(GrowthConfig(capacity_per_round=capacity)):
            one = next(one for one in PLACES if one.layer_id == command.layer_id)
            per_unit = one.inputs + one.outputs + 1
            budget = capacity * 682
            hidden = command.settings["hidden"]
            assert hidden * per_unit + one.outputs <= budget < (hidden + 1) * per_unit + one.outputs


@given(st.integers(0, 1200), st.floats(0.1, 3.0), st.floats(0.1, 3.0))
def test_no_candidate_grows_the_model_beyond_max_growth(grown, max_growth, capacity):
    config = GrowthConfig(max_growth=max_growth, capacity_per_round=capacity)
    for command in decide(config, grown_parameters=grown):
        one = next(one for one in PLACES if one.layer_id == command.layer_id)
        blueprint = make_blueprint(command.blueprint, command.settings)
        size = blueprint.num_parameters(Ports(one.inputs, one.outputs))
        assert grown + size <= max_growth * 682


def test_a_full_model_is_offered_nothing():
    assert decide(GrowthConfig(max_growth=1.5), grown_parameters=1023) == []


def test_a_decision_depends_on_what_is_seen_alone():
    policy = HeuristicPolicy(GrowthConfig())
    assert policy.decide(NOW) == policy.decide(NOW) == HeuristicPolicy(GrowthConfig()).decide(NOW)


def test_a_shortlist_of_one_is_the_longest_path():
    assert [one.layer_id for one in shortlist(PLACES, 1)] == [""]


def test_without_layers_a_shortlist_is_paths_alone():
    paths = [one for one in PLACES if one.kind != "layer"]
    assert [one.layer_id for one in shortlist(paths, 2)] == ["", "0:2"]


def test_while_a_place_is_under_embargo_no_round_begins():
    """A round without the places that lost the last one would be no fair choice."""
    resting = replace(PLACES[0], is_dormant=False, is_under_embargo=True)
    assert decide(places=(resting, *PLACES[1:])) == []
    assert decide(places=PLACES)
