from dataclasses import replace

import pytest

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Piece
from esper.tamiyo.chance import (
    LEFT,
    LEFT_BESIDE,
    PER_SAMPLE,
    PER_TOKEN,
    PER_TOKEN_BESIDE,
    bound,
    no_chance,
    parameters_left,
    targets,
)
from esper.tamiyo.proposal import places_to_try
from esper.tamiyo.shortlist import shortlist
from esper.tamiyo.sizing import no_colony, nowhere, options
from tests.tamiyo.seen import NOW, place

CONFIG = GrowthConfig(blueprints=("widen", "bottleneck_mlp"))
FIRST, LAST = place("0", rows=64), place("2", rows=8)
PIECES = (
    Piece("blocks.0.up", "linear", 4, 8, rows=8, writes=8, target=0),
    Piece("blocks.0.down", "linear", 8, 4, rows=8, reads=8, source=0),
)
COLONY = place("blocks.*", kind="colony", rows=1, pieces=PIECES)
HARDLY = "a larger network would hardly gain. min_targets=0 tries all the same."
WHOLE = place("*", kind="colony", rows=1, pieces=PIECES)


def seen(per_parameter, *places):
    """A run of so many targets for each of a hundred parameters, eight in a step."""
    steps = -(-int(per_parameter * 100) // 8)
    return replace(
        NOW, places=places, planned_steps=steps, step=steps // 8, host_parameters=100, host_multiply_adds=800
    )


def test_a_target_is_a_row_of_the_place_that_writes_fewest():
    assert targets(seen(16, FIRST, LAST, COLONY)) == 1600
    assert targets(seen(16, replace(FIRST, rows=0))) is None


@pytest.mark.parametrize(
    ("layout", "one", "least"),
    [
        ("features", LAST, PER_SAMPLE),
        ("features", COLONY, PER_SAMPLE),
        ("tokens", LAST, PER_TOKEN_BESIDE),
        ("tokens", COLONY, PER_TOKEN),
    ],
)
def test_what_growth_asks_for_depends_on_what_is_predicted_and_on_what_grows(layout, one, least):
    now = seen(least, FIRST, replace(LAST, layout=layout), COLONY)
    assert bound(one, now, CONFIG) == least
    assert no_chance(one, now, CONFIG) is None
    assert f"asks for {least}" in no_chance(one, seen(least - 1, FIRST, replace(LAST, layout=layout)), CONFIG)


def test_before_the_first_step_nobody_can_tell():
    assert no_chance(LAST, seen(1, replace(FIRST, rows=0), replace(LAST, rows=0)), CONFIG) is None


def test_where_nothing_has_a_chance_nothing_is_tried_and_the_reason_is_told():
    now = seen(PER_SAMPLE / 2, FIRST, LAST)
    assert places_to_try(now, CONFIG) == []
    assert nowhere(now, CONFIG).startswith("Nothing is tried: the run will learn from 17")
    assert places_to_try(now, replace(CONFIG, min_targets=0))
    assert nowhere(seen(PER_SAMPLE, FIRST, LAST), CONFIG) is None


def test_only_places_that_a_blueprint_fits_count_where_none_has_a_chance():
    texts = [replace(one, layout="tokens") for one in (FIRST, LAST)]
    now = seen((PER_TOKEN + PER_TOKEN_BESIDE) // 2, *texts, COLONY)
    assert nowhere(now, replace(CONFIG, blueprints=("widen",))).endswith(f"asks for {PER_TOKEN}: {HARDLY}")
    assert nowhere(now, CONFIG) is None, "a module beside a layer has a chance"


def test_where_single_places_have_a_chance_and_colonies_have_none_it_is_told():
    texts = [replace(one, layout="tokens") for one in (FIRST, LAST)]
    now = seen((PER_TOKEN + PER_TOKEN_BESIDE) // 2, *texts, COLONY)
    assert no_colony(now, CONFIG) == (
        f"No colony is tried: the run will learn from 100 targets per parameter, and growth asks for 150: {HARDLY}"
    )
    assert no_colony(seen(PER_TOKEN, *texts, COLONY), CONFIG) is None
    assert no_colony(replace(now, places=tuple(texts)), CONFIG) is None


def test_a_colony_leaves_enough_targets_for_each_parameter_of_the_grown_network():
    now = seen(2 * PER_SAMPLE, LAST, COLONY)
    [option] = options(COLONY, "all", now, CONFIG)
    assert targets(now) >= LEFT * PER_SAMPLE * (100 + option.num_parameters)
    assert not options(COLONY, "all", seen(LEFT * PER_SAMPLE, LAST, COLONY), CONFIG)


def test_a_module_beside_a_host_of_texts_may_leave_fewer():
    now = seen(PER_TOKEN, replace(LAST, layout="tokens"), COLONY)
    parameters = {
        place.layer_id: round(targets(now) / (100 + parameters_left(place, now, CONFIG))) for place in now.places
    }
    assert parameters == {"2": LEFT_BESIDE * PER_TOKEN_BESIDE, "blocks.*": LEFT * PER_TOKEN}


def test_a_structure_that_repeats_itself_grows_as_a_whole():
    places = [FIRST, LAST, COLONY, WHOLE]
    assert [one.place.layer_id for one in shortlist(places, 4)] == ["blocks.*"]
    assert [one.place.layer_id for one in shortlist([FIRST, LAST, WHOLE], 4)] != ["*"]
    grown = replace(WHOLE, grown_parameters=10)
    assert shortlist([FIRST, LAST, COLONY], 4, among=[FIRST, LAST, COLONY, grown]) == []
    assert shortlist([FIRST, LAST], 4, among=[FIRST, LAST, COLONY, WHOLE]), "no colony has a chance"
