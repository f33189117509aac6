"""Rates and means over runs, against known answers."""

import pytest

from benchmarks.growth.trials_statistics import mean, rate


@pytest.mark.parametrize(("hits", "count"), [(196, 200), (388, 400)])
def test_the_counts_that_the_specification_names_prove_95_percent(hits, count):
    assert rate([1] * hits + [0] * (count - hits)).at_least >= 0.95


@pytest.mark.parametrize(("hits", "count"), [(195, 200), (387, 400)])
def test_one_success_less_does_not_prove_95_percent(hits, count):
    assert rate([1] * hits + [0] * (count - hits)).at_least < 0.95


def test_the_upper_bound_of_never_is_the_exact_one():
    """0 of n: 1 - 0.05 ** (1 / n)."""
    assert rate([0] * 149).at_most == pytest.approx(1 - 0.05 ** (1 / 149))


def test_a_rate_counts_what_runs_hold_and_leaves_out_runs_without():
    found = rate([2, 0, 1], [2, 0, 2])
    assert (found.hits, found.count, found.share) == (3, 4, 0.75)


def test_what_hangs_together_within_runs_has_no_exact_bounds():
    found = rate([2, 1], [2, 2])
    assert found.at_least is None
    assert found.at_most is None


def test_the_interval_of_a_rate_is_wider_where_successes_come_in_whole_runs():
    """100 graft trials in 10 runs that hit or miss as a whole know less than 100 runs."""
    together = rate([10] * 8 + [0] * 2, [10] * 10)
    apart = rate([1] * 80 + [0] * 20)
    assert together.share == apart.share
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = [float(value) for value in range(400)]
    centre, low, high = mean(values)
    half = 1.96 * 115.6 / 400**0.5  # standard deviation of 0..399: 115.6
    assert centre == 199.5
    assert low == pytest.approx(centre - half, abs=1)
    assert high == pytest.approx(centre + half, abs=1)


def test_nothing_has_neither_rate_nor_mean():
    assert rate([]) is None
    assert rate([0, 0], [0, 0]) is None
    assert mean([]) is None
