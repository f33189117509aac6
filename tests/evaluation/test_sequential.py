"""Confidence sequences: how often they miss, and what they do at the edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from esper.evaluation.sequential import (
    Interval,
    confidence_interval,
    is_ruled_out,
    log_evidence,
    log_lopsidedness,
)

ALPHA = 0.05
EXPERIMENTS = 2000


def _lasting_noise(rng):
    """Who goes first is drawn, on a machine whose noise lasts and that slows down."""
    slots = rng.normal(size=(EXPERIMENTS, 100))
    for slot in range(1, 100):
        slots[:, slot] += 0.95 * slots[:, slot - 1]
    slots += 0.5 * np.arange(100)
    return rng.choice([-1.0, 1.0], size=(EXPERIMENTS, 50)) * (slots[:, 0::2] - slots[:, 1::2])


def _sizes_that_follow_the_past(rng):
    """A difference grows while A leads: only its sign is random."""
    found = np.zeros((EXPERIMENTS, 50))
    for pair in range(50):
        size = 1.0 + np.maximum(found[:, :pair].sum(axis=1), 0.0)
        found[:, pair] = size * rng.choice([-1.0, 1.0], size=EXPERIMENTS)
    return found


ALIKE = {
    "normal": lambda rng: rng.normal(size=(EXPERIMENTS, 50)),
    "heavy tails": lambda rng: rng.standard_cauchy(size=(EXPERIMENTS, 50)),
    "two values": lambda rng: rng.choice([-1.0, 1.0], size=(EXPERIMENTS, 50)),
    "mostly ties": lambda rng: rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=(EXPERIMENTS, 50)),
    "noise that lasts": _lasting_noise,
    "sizes that follow the past": _sizes_that_follow_the_past,
}


@pytest.mark.parametrize("name", ALIKE)
def test_things_that_are_alike_are_told_apart_at_no_look_but_for_alpha(name):
    """As many as a chance of exactly alpha would give once in 10,000 times are too many."""
    differences = ALIKE[name](np.random.default_rng(0))
    assert is_ruled_out(differences, ALPHA).sum() <= stats.binom.ppf(0.9999, EXPERIMENTS, ALPHA)


def test_the_harness_sees_a_test_that_peeks():
    """Negative control: a t test at the same level, looked at after every difference."""
    differences = ALIKE["normal"](np.random.default_rng(0))
    counts = np.arange(3, 51)
    mean = np.cumsum(differences, axis=1)[:, 2:] / counts
    error = np.sqrt((np.cumsum(differences**2, axis=1)[:, 2:] / counts - mean**2) / (counts - 1))
    is_significant = np.abs(mean) > stats.t.ppf(1 - ALPHA / 2, counts - 1) * error
    assert is_significant.any(axis=1).mean() > 0.2


def test_an_order_that_is_not_drawn_is_found_out():
    """Negative control: A always goes first on a machine that slows down."""
    slots = np.random.default_rng(0).normal(size=(200, 100)) + 0.5 * np.arange(100)
    assert is_ruled_out(slots[:, 0::2] - slots[:, 1::2], ALPHA).mean() > 0.3


def test_a_difference_of_four_fifths_of_a_standard_deviation_is_found_within_30():
    differences = np.random.default_rng(1).normal(0.8, size=(EXPERIMENTS, 30))
    assert is_ruled_out(differences, ALPHA).mean() > 0.86


def test_intervals_miss_the_truth_at_most_alpha_of_the_time():
    rng = np.random.default_rng(2)
    found = [confidence_interval(rng.standard_t(2, size=25) + 3.0, 0.2) for _ in range(150)]
    assert sum(not one.low <= 3.0 <= one.high for one in found) <= stats.binom.ppf(0.999, 150, 0.2)


numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))
samples = st.lists(numbers, min_size=9, max_size=14).map(np.array)


@settings(max_examples=40)
@given(samples)
def test_intervals_only_shrink(differences):
    """So a verdict at any look is one at the end."""
    before = confidence_interval(differences[:-1])
    after = confidence_interval(differences)
    room = 1e-6 * max(np.abs(differences).max(), 1e-9)
    assert after.low >= before.low - room
    assert after.high <= before.high + room


@settings(max_examples=40)
@given(samples, st.sampled_from([-1.0, 1e-3, 3.0]), st.sampled_from([0.0, 17.0]))
def test_intervals_follow_the_unit_and_the_origin(differences, factor, shift):
    one, other = confidence_interval(differences), confidence_interval(factor * differences + shift)
    wanted = sorted([factor * one.low + shift, factor * one.high + shift])
    room = 1e-4 * (abs(factor) * np.ptp(differences) + 1e-3)
    assert other.low == pytest.approx(wanted[0], abs=room)
    assert other.high == pytest.approx(wanted[1], abs=room)


@settings(max_examples=40)
@given(samples)
def test_an_interval_spans_all_shifts_that_are_not_ruled_out(differences):
    found = confidence_interval(differences)
    shifts = np.median(differences) + max(np.ptp(differences), 1.0) * np.linspace(-3, 3, 101)
    left = shifts[~is_ruled_out(differences - shifts[:, None], ALPHA)]
    room = 0.1 * np.ptp(differences) + 1e-9  # a gap may hide what is narrower than the search's first steps
    assert (left >= found.low - room).all()
    assert (left <= found.high + room).all()


def test_nothing_is_known_at_first():
    assert confidence_interval(np.array([])) == Interval(-np.inf, np.inf)
    assert confidence_interval(np.array([3.0, 3.0])) == Interval(-np.inf, np.inf)


def test_differences_that_do_not_vary_are_known_exactly():
    found = confidence_interval(np.full(12, 3.0))
    assert (found.low, found.high) == pytest.approx((3.0, 3.0))
    assert confidence_interval(np.zeros(12)).high == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_size_of_differences_does_not_matter(size):
    differences = np.random.default_rng(3).normal(size=20)
    assert log_evidence(size * differences) == pytest.approx(log_evidence(differences))


def test_events_on_two_sides_are_rarely_called_lopsided_and_never_missed_on_one():
    sides = np.random.default_rng(4).random((EXPERIMENTS, 40)) < 0.5
    wrong = sum(log_lopsidedness(one).max() > np.log(1 / ALPHA) for one in sides)
    assert wrong <= stats.binom.ppf(0.9999, EXPERIMENTS, ALPHA)
    assert log_lopsidedness(np.full(8, True)).max() > np.log(1 / ALPHA)
