import math
from dataclasses import replace

import pytest

from esper.contracts.config import GrowthConfig
from esper.tamiyo.timing import has_stalled, may_grow, memorises, overfits, reason_to_grow
from tests.tamiyo.seen import FALLING, NOW, PLACES, STALLED

CONFIG = GrowthConfig()


def reason(config: GrowthConfig = CONFIG, **seen):
    return reason_to_grow(replace(NOW, **seen), config)


@pytest.mark.parametrize("step", [50, 80, 400])
def test_a_stall_inside_the_window_begins_a_round(step):
    assert reason(step=step) == "the held-out loss has stalled"


@pytest.mark.parametrize("step", [0, 49, 401, 600, 1000])
def test_nothing_germinates_outside_the_window(step):
    assert reason(step=step) is None


def test_without_a_trigger_it_waits_for_grow_at_and_no_longer():
    assert reason(select_losses=FALLING, step=99) is None
    assert reason(select_losses=FALLING, step=100) == "the growth window is open"


@pytest.mark.parametrize(("rounds_done", "begins"), [(0, True), (1, True), (2, False), (3, False)])
def test_rounds_are_limited(rounds_done, begins):
    assert (reason(GrowthConfig(max_rounds=2), rounds_done=rounds_done, step=400) is not None) is begins


def test_no_rounds_never_grow():
    assert reason(GrowthConfig(max_rounds=0)) is None


def test_the_first_round_begins_at_the_latest_when_its_time_has_come():
    config = GrowthConfig(max_rounds=3)
    assert next(step for step in range(1000) if reason(config, select_losses=FALLING, step=step)) == 100


def test_a_run_that_gets_on_well_is_not_held_up_a_second_time():
    steps = range(1000)
    assert not any(reason(GrowthConfig(), select_losses=FALLING, rounds_done=1, step=step) for step in steps)
    assert any(reason(GrowthConfig(), select_losses=STALLED, rounds_done=1, step=step) for step in steps)


def test_an_overfitting_run_is_refused():
    rising = tuple(reversed(FALLING))
    assert reason(train_losses=FALLING, select_losses=rising, step=200) is None
    assert reason(train_losses=rising, select_losses=rising, step=200)  # it diverges, but it does not overfit


def test_no_round_begins_while_a_place_is_under_embargo():
    """A round without the places that lost the last one would be no fair choice."""
    resting = replace(PLACES[0], states=(8, 8, 8, 8), is_under_embargo=True)
    assert reason(places=(resting, *PLACES[1:])) is None


@pytest.mark.parametrize(("active", "begins"), [(0, True), (2, True), (3, False), (4, False)])
def test_a_slot_must_be_free(active, begins):
    assert may_grow(replace(NOW, active=active), GrowthConfig(max_active_seeds=3)) is begins


@pytest.mark.parametrize(
    ("metrics", "begins"),
    [((), True), ((0.95, 0.89), True), ((0.5, 0.9), False), ((0.95,), False), ((math.nan,), True)],
)
def test_what_has_reached_its_target_grows_no_more(metrics, begins):
    assert may_grow(replace(NOW, select_metrics=metrics), GrowthConfig(target_metric=0.9)) is begins


def test_without_a_target_none_is_reached():
    assert may_grow(replace(NOW, select_metrics=(1.0,)), CONFIG)


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


@pytest.mark.parametrize(
    ("train_losses", "select_losses", "boundaries", "has"),
    [
        ([1.0, 0.7], [1.0, 1.1], 1, True),
        ([1.0, 0.8], [1.0, 1.1], 1, False),  # it may have risen by chance
        ([1.0, 0.7], [1.2, 1.1], 1, False),
        ([9.0, 0.3, 0.4], [0.1, 1.0, 1.1], 1, False),
        ([1.0, 0.3, 0.4], [1.2, 1.0, 1.1], 2, False),  # over both of them it has fallen
        ([1.0, 0.3, 0.4], [1.0, 1.2, 1.1], 2, True),
        ([1.0, 0.7], [-3.0, -2.0], 1, True),  # a log-likelihood may be negative
        ([-1.0, -4.0], [-3.0, -2.0], 1, False),  # and has no share to lose
        ([1.0, -4.0], [-3.0, -2.0], 1, True),
        ([1.0, 0.7], [1.0, math.nan], 1, False),
        ([1.0, 0.7], [1.0, 1.1], 0, False),
        ([0.7], [1.1], 1, False),
        ([], [], 0, False),
    ],
)
def test_a_run_memorises_where_training_loss_falls_by_a_quarter_and_held_out_loss_rises(
    train_losses, select_losses, boundaries, has
):
    assert memorises(train_losses, select_losses, boundaries) is has
