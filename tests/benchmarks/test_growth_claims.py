"""Statistics against known answers."""

import itertools

import numpy as np
import pytest

from benchmarks.growth.claims import Claim, holm, interval, judged, p_above

BETTER, NO_WORSE = Claim("grown", "static"), Claim("grown", "static", is_non_inferiority=True)


def test_ten_wins_of_ten_are_one_of_all_flips_of_signs():
    assert p_above([1.0, 2.0, 0.5, 3.0, 1.5, 2.5, 0.1, 0.2, 4.0, 1.0]) == pytest.approx(1 / 2**10)


def test_the_p_value_is_the_share_of_flips_that_are_at_least_as_good():
    differences = [2.0, -1.0, 3.0, 0.5, -0.25, 1.0]
    flips = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    assert p_above(differences) == pytest.approx(np.mean(np.array(flips) >= sum(differences) - 1e-12))


def test_no_difference_proves_nothing():
    assert p_above([0.0] * 10) == 1.0
    assert p_above([1.0, -1.0, 1.0, -1.0]) > 0.5


def test_a_margin_makes_a_small_loss_no_worse_and_a_large_one_worse():
    small, large = [-0.2, -0.1, -0.3, 0.1, -0.2, 0.0, -0.1, -0.3, -0.2, -0.1], [-1.0, -0.9, -1.2, -0.8] * 3
    assert p_above(small) > 0.5
    assert p_above(small, -0.5) < 0.01
    assert p_above(large, -0.5) > 0.5


def test_a_run_that_diverged_disproves_and_a_row_that_did_counts_as_the_largest_gain():
    wins = [1.0, 2.0, 0.5, 3.0, 1.5]
    assert p_above([*wins, float("-inf")]) == p_above([*wins, float("nan")]) == 1.0
    assert p_above([*wins, float("inf")]) == p_above([*wins, 3.0])
    assert p_above([float("inf")] * 5) == 1.0


def test_many_seeds_are_flipped_at_random_and_come_close():
    differences = np.random.default_rng(1).normal(0.3, 1, size=40)
    assert p_above(differences) == pytest.approx(0.02, abs=0.03)


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.6]) == pytest.approx([1.0, 0.003, 1.0])
    assert holm([]) == []


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for _ in range(60):
        _, low, high = interval(random.normal(1.0, 2.0, size=30))
        hits += low <= 1.0 <= high
    assert 51 <= hits <= 60


def test_what_cannot_be_resampled_has_no_width():
    assert interval([3.0]) == (3.0, 3.0, 3.0)
    assert interval([2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert interval([1.0, float("inf")])[0] == float("inf")


def test_claims_are_corrected_over_all_tasks_and_keep_their_own_margin():
    wins = [1.0 + 0.1 * seed for seed in range(10)]
    small_losses = [-1.0, -1.1, -0.9] * 3
    found = judged(
        {"a": {BETTER: wins, NO_WORSE: wins}, "b": {BETTER: small_losses, NO_WORSE: small_losses}},
        {"a": 0.5, "b": 1.5},
        planned=4,
    )
    by_name = {(one["task"], one["margin"]): one for one in found}
    assert by_name["a", None]["p"] == pytest.approx(1 / 2**10)
    assert by_name["a", None]["p_holm"] == pytest.approx(4 / 2**10)
    assert [one["holds"] for one in found] == [True, True, False, True]
    assert by_name["b", 1.5]["won"] == 0
    unmoved = judged({"b": {NO_WORSE: small_losses}}, {"b": 0.5}, planned=1)
    assert not unmoved[0]["holds"]


def test_claims_that_are_not_computed_yet_are_corrected_for():
    wins = [1.0 + 0.1 * seed for seed in range(10)]
    (alone,) = judged({"a": {BETTER: wins}}, {"a": 0.5}, planned=25)
    assert alone["p_holm"] == pytest.approx(25 / 2**10)


def test_a_single_pair_proves_nothing_and_breaks_nothing():
    assert p_above([1.0]) == 0.5
    assert p_above([-1.0]) == 1.0
