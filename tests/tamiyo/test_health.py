import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.reports import SeedReport
from esper.tamiyo.health import demand, health, vitals
from tests.tamiyo.seen import place, sensed


def test_the_usual_chunk():
    """0.6 * 1/2 + 0.3 * (1 - 0.5) + 0.1 * (1 - 0.2)."""
    assert health(sensed(3), 3) == pytest.approx([0.53] * 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"variance": [1.0, 3.0, 1.0]}, 0.6 * 0.75 + 0.15 + 0.08),
        ({"variance": [1.0, 0.0, 1.0]}, 0.15 + 0.08),
        ({"inactive": [0.5, 1.0, 0.5]}, 0.3 + 0.08),
        ({"correlation": [0.2, 1.0, 0.2]}, 0.3 + 0.15),
        ({"variance": [1.0, 0.0, 1.0], "inactive": 1.0, "correlation": 1.0}, 0.0),
    ],
)
def test_terms_have_their_weights(changes, expected):
    assert health(sensed(3, **changes), 3)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("variance", (0.3 * 0.5 + 0.1 * 0.8) / 0.4),
        ("inactive", (0.6 * 0.5 + 0.1 * 0.8) / 0.7),
        ("correlation", (0.6 * 0.5 + 0.3 * 0.5) / 0.9),
    ],
)
def test_a_missing_term_is_left_out(missing, expected):
    assert health(sensed(3, **{missing: None}), 3)[1] == pytest.approx(expected)
    holed = health(sensed(3, **{missing: [0.2, math.nan, 0.2]}), 3)
    assert holed[1] == pytest.approx(expected)


def test_what_was_not_measured_has_no_health():
    assert health(SeedReport(), 2) == [None, None]
    assert demand(SeedReport(), 2) == [None, None]
    assert vitals(place("0")) == (None, None, (), False)


def test_chunks_that_all_stand_still_are_not_compared():
    """So it is at birth where a residual branch ends in zeros."""
    assert vitals(place("0", seeds=sensed(variance=0.0))).silent == ()


def test_demand_does_not_change_when_a_layer_is_scaled():
    scaled = sensed(2, variance=[9.0, 18.0], gradient=[1 / 3, 2 / 3])
    assert demand(scaled, 2) == pytest.approx(demand(sensed(2, variance=[1.0, 2.0], gradient=[1.0, 2.0]), 2))


@pytest.mark.parametrize("missing", ["variance", "gradient"])
def test_demand_needs_gradient_and_variance(missing):
    assert demand(sensed(2, **{missing: None}), 2) == [None, None]
    assert demand(sensed(2, **{missing: [1.0, math.inf]}), 2) == [1.0, None]


def test_demand_of_a_place_is_its_channels_and_positions():
    """Chunks of 1 and 3 channels, 16 rows."""
    seeds = sensed(2, gradient=[4.0, 2.0])
    assert vitals(place("0", num_seeds=2, outputs=4, bounds=(0, 1, 4), rows=16, seeds=seeds)).demand == pytest.approx(
        math.sqrt((16 + 3 * 4) / 4) * 4
    )


def test_silent_seeds_are_named():
    assert vitals(place("0", seeds=sensed(variance=[1.0, 0.0, 1e-9, 0.01]))).silent == (1, 2)
    assert vitals(place("0", seeds=sensed(variance=[1.0, 0.0, 0.0, 0.0]))).silent == (1, 2, 3)


@pytest.mark.parametrize(
    ("inactive", "is_closed"),
    [(1.0, True), ([1.0, 1.0, 1.0, 0.98], False), (None, False), ([1.0, 1.0, 1.0, math.nan], False)],
)
def test_a_place_is_closed_if_all_of_it_is(inactive, is_closed):
    assert vitals(place("0", seeds=sensed(inactive=inactive))).is_closed is is_closed


@given(st.lists(st.tuples(st.floats(), st.floats(), st.floats(), st.floats()), min_size=1, max_size=9))
def test_health_is_in_0_to_1_whatever_was_measured(rows):
    columns = [list(column) for column in zip(*rows, strict=True)]
    one = place("0", num_seeds=len(rows), outputs=len(rows), seeds=SeedReport(*columns))
    assert all(score is None or 0 <= score <= 1 for score in health(one.seeds, len(rows)))
    seen = vitals(one)
    assert seen.health is None or 0 <= seen.health <= 1 + 1e-12
    assert seen.demand is None or (math.isfinite(seen.demand) and seen.demand >= 0)
