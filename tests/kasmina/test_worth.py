import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esper.runtime.judging.worth import confirm_level, one_sided_p, paired_z, split_samples


def losses(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("count", [2, 10, 600])
@pytest.mark.parametrize("shift", [-0.05, 0.0, 0.3])
def test_z_is_the_paired_t_statistic(count, shift):
    mine, reference = losses(count, 1), losses(count, 2, shift)
    assert paired_z(mine, reference) == pytest.approx(stats.ttest_rel(reference, mine).statistic, rel=1e-9)


def test_better_is_positive():
    assert paired_z(losses(50, 1) * 0.9, losses(50, 1)) > 2.33
    assert paired_z(losses(50, 1) * 1.1, losses(50, 1)) < -2.33


@pytest.mark.parametrize("z", [-3.0, 0.0, 1.64485, 2.33, 6.0])
def test_p_is_the_normal_tail(z):
    assert one_sided_p(z) == pytest.approx(stats.norm.sf(z), rel=1e-9)


def test_under_no_difference_z_exceeds_2_33_in_one_percent_of_trials():
    generator = torch.Generator().manual_seed(0)
    trials = torch.randn(2000, 300, generator=generator, dtype=torch.float64)
    exceeded = sum(paired_z(trial, torch.zeros(300, dtype=torch.float64)) >= 2.33 for trial in trials)
    assert 8 <= exceeded <= 34  # binomial, mean 20, within 3 standard deviations


def test_samples_of_a_group_are_averaged_first():
    mine, reference = losses(60, 1), losses(60, 2)
    groups = torch.arange(60) // 5 * 7 - 3  # any numbers, of 12 groups
    means = [(reference - mine)[groups == group].mean() for group in groups.unique()]
    assert paired_z(mine, reference, groups) == pytest.approx(stats.ttest_1samp(means, 0).statistic, rel=1e-9)


def test_groups_of_unequal_size_count_once_each():
    mine, reference = torch.zeros(6, dtype=torch.float64), torch.tensor([1.0, 1, 1, 1, 3, 2]).double()
    groups = torch.tensor([4, 4, 4, 4, 9, 1])
    assert paired_z(mine, reference, groups) == pytest.approx(stats.ttest_1samp([1.0, 3.0, 2.0], 0).statistic)


def test_copies_of_samples_do_not_make_evidence():
    """Negative control: without groups, ten copies of each sample multiply z by about the root of ten."""
    mine, reference = losses(40, 1), losses(40, 2, 0.05)
    copies, groups = mine.repeat(10), torch.arange(40).repeat(10)
    assert paired_z(copies, reference.repeat(10), groups) == pytest.approx(paired_z(mine, reference), rel=1e-9)
    assert paired_z(copies, reference.repeat(10)) > 3 * paired_z(mine, reference) > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_makes_z_missing(bad):
    spoilt = losses(20, 1)
    spoilt[3] = bad
    assert paired_z(spoilt, losses(20, 2)) is None
    assert paired_z(losses(20, 2), spoilt) is None


def test_one_unit_makes_z_missing():
    assert paired_z(losses(1, 1), losses(1, 2)) is None
    assert paired_z(losses(8, 1), losses(8, 2), torch.zeros(8, dtype=torch.int64)) is None


def test_no_difference_is_zero_and_a_constant_one_infinite():
    one = losses(20, 1)
    quarter = torch.full((20,), 0.25, dtype=torch.float64)
    assert paired_z(one, one) == 0.0
    assert paired_z(torch.zeros(20, dtype=torch.float64), quarter) == math.inf
    assert paired_z(quarter, torch.zeros(20, dtype=torch.float64)) == -math.inf


def test_confirm_levels_spend_at_most_five_percent_for_ever():
    levels = [confirm_level(judged) for judged in range(1, 10_001)]
    assert levels[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert levels == sorted(levels, reverse=True)
    assert 0.0499 < sum(levels) < 0.05


# The split


@given(st.integers(5, 3000), st.integers(0, 2**32))
def test_parts_are_disjoint_and_cover_everything_one_to_three_to_one(count, seed):
    split = split_samples(count, None, seed)
    assert torch.equal(torch.cat(list(split)).sort().values, torch.arange(count))
    sizes = [part.numel() for part in split]
    assert abs(sizes[0] - count / 5) <= 1
    assert abs(sizes[1] - count * 3 / 5) <= 1
    assert abs(sizes[2] - count / 5) <= 1


@given(st.lists(st.integers(-(2**40), 2**40), min_size=10, max_size=200), st.integers(0, 100))
def test_a_group_is_never_parted(groups, seed):
    groups = torch.tensor(groups)
    parts = [set(groups[part].tolist()) for part in split_samples(groups.numel(), groups, seed)]
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(parts, 2))
    assert set.union(*parts) == set(groups.tolist())


def test_the_split_depends_on_the_seed_alone():
    torch.manual_seed(0)
    one, other, third = split_samples(600, None, 5), split_samples(600, None, 5), split_samples(600, None, 6)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert not torch.equal(one.gate, third.gate)


def test_the_split_leaves_the_global_random_state():
    torch.manual_seed(0)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    split_samples(600, None, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpys).all()


def test_the_split_is_a_shuffle():
    """A data file sorted by class must not put one class into one part."""
    split = split_samples(1000, None, 0)
    assert all(400 < float(part.double().mean()) < 600 for part in split)
