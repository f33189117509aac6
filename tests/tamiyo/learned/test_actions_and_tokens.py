"""What the learned controller may do and sees: nothing that is forbidden, nothing that tells one run's units from
another's."""

from dataclasses import replace

import pytest

from esper.blueprints.catalogue import CATALOGUE, COLONIES
from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.tamiyo import shield
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned.actions import SHARES, legal_actions
from esper.tamiyo.learned.tokens import BLUEPRINTS, WIDEST, names, tokens
from tests.tamiyo.seen import NOW, PLACES, busy, report, sensed

CONFIG = GrowthConfig()
SENSED = replace(
    NOW,
    places=[replace(one, seeds=sensed(one.num_seeds), rows=32, drift=0.1, gradient_noise=0.5) for one in PLACES],
    host_multiply_adds=682 * 32,
    step_flops=6 * 682 * 32,
    train_flops=80 * 6 * 682 * 32,
)


def read(seen: Observation, config: GrowthConfig = CONFIG):
    return tokens(seen, config, legal_actions(seen, config))


def test_every_action_passes_the_shield_and_what_the_heuristic_would_offer_is_among_them():
    actions = legal_actions(NOW, CONFIG)
    assert all(shield.veto(one.command(CONFIG, "why"), NOW, CONFIG) is None for one in actions)
    offered = {(one.layer_id, one.blueprint, str(one.settings)) for one in HeuristicPolicy(CONFIG).decide(NOW)}
    assert offered <= {
        (one.place.layer_id, one.option.blueprint.id, str(one.option.blueprint.settings)) for one in actions
    }


def test_sizes_are_shares_of_the_largest():
    actions = [one for one in legal_actions(NOW, CONFIG) if one.place.layer_id == "" and one.option.blueprint.size]
    largest = {one.option.blueprint.id: one.option.num_parameters for one in actions if one.share == 1.0}
    assert {one.share for one in actions} == set(SHARES)
    for one in actions:
        assert one.option.num_parameters <= one.share * largest[one.option.blueprint.id]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"step": 900}, CONFIG),
        ({"rounds_done": 2}, CONFIG),
        ({"grown_parameters": 1023}, CONFIG),
        ({"places": [busy(one) for one in PLACES]}, CONFIG),
        ({}, GrowthConfig(min_confidence=3, blueprints=("noop",))),
    ],
)
def test_nothing_may_be_done_outside_of_the_window_the_budgets_and_what_sleeps(changes, config):
    assert legal_actions(replace(NOW, **changes), config) == []


def test_a_place_that_failed_too_often_is_left_alone():
    seen = replace(NOW, reports=[report(layer_id="0")] * 3)
    assert "0" not in {one.place.layer_id for one in legal_actions(seen, CONFIG)}
    assert "0" in {one.place.layer_id for one in legal_actions(NOW, CONFIG)}


def test_a_command_is_that_of_the_action():
    action = legal_actions(NOW, CONFIG)[0]
    command = action.command(CONFIG, "why")
    assert (command.layer_id, command.seed_id, command.target) == (action.place.layer_id, "all", State.GERMINATED)
    blueprint = action.option.blueprint
    assert (command.blueprint, command.settings, command.reason) == (blueprint.id, blueprint.settings, "why")


def test_names_and_numbers_are_as_many():
    found, known = read(SENSED), names()
    assert len(found.run) == len(known.run)
    assert {len(one) for one in found.places} == {len(known.place)}
    assert {len(one) for one in found.actions} == {len(known.action)}
    assert [SENSED.places[index].layer_id for index in found.place_of] == [
        one.place.layer_id for one in legal_actions(SENSED, CONFIG)
    ]


def test_the_units_of_the_loss_and_the_names_of_places_tell_nothing():
    """Negative control: a loss of another shape does."""
    told = read(SENSED)
    scaled = [tuple(1000 * loss for loss in losses) for losses in (SENSED.train_losses, SENSED.select_losses)]
    renamed = [replace(one, layer_id=f"model.{one.layer_id}") for one in SENSED.places]
    other = replace(SENSED, train_losses=scaled[0], select_losses=scaled[1], places=renamed)
    assert read(other).run == pytest.approx(told.run)
    assert read(other).places == told.places
    assert read(replace(SENSED, select_losses=SENSED.train_losses)).run != pytest.approx(told.run)


def test_a_host_of_twice_the_size_with_twice_the_data_looks_the_same():
    """Negative control: with the same data it does not."""
    twice = [replace(one, host_parameters=2 * one.host_parameters, rows=2 * one.rows) for one in SENSED.places]
    larger = replace(SENSED, places=twice, host_parameters=2 * SENSED.host_parameters)
    assert read(larger).run[: names().run.index("room")] == pytest.approx(read(SENSED).run[: names().run.index("room")])
    poorer = replace(larger, places=[replace(one, rows=32) for one in twice])
    assert read(poorer).run != pytest.approx(read(larger).run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1e30, 1e308])
def test_odd_numbers_stay_within_bounds(value):
    seen = replace(
        SENSED,
        train_losses=(1.0, value, 1.0, value, 1e300),
        select_losses=(value, 1.0, value, 1.0, value),
        select_metrics=(value,),
        places=[replace(one, seeds=sensed(one.num_seeds, variance=value, gradient=value)) for one in SENSED.places],
        reports=[report(gate_loss=value, twin_gate_loss=1.0)],
    )
    found = read(seen)
    every = [*found.run, *(x for vector in (*found.places, *found.actions) for x in vector)]
    assert all(-WIDEST <= x <= WIDEST for x in every)


def test_a_run_at_its_beginning_can_be_read():
    seen = replace(NOW, step=0, epoch=0, train_losses=(), select_losses=())
    assert len(tokens(seen, CONFIG, []).run) == len(names().run)


def test_every_blueprint_that_may_grow_is_known_by_name():
    assert {*CATALOGUE, *COLONIES} - {"noop"} == set(BLUEPRINTS)
