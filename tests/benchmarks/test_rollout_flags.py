"""What is claimed of feature flags, with fewer models."""

from benchmarks.rollout_kit.flags import cached_us, monotony, shares, stickiness

IDS = [f"model-{number}" for number in range(3000)]


def test_shares_are_as_large_as_they_say_and_flags_choose_their_own_models():
    found = shares(IDS, "10%")
    assert max(abs(one["z"]) for one in found["flags"].values()) < 3
    assert max(map(abs, found["pairs_z"].values())) < 4


def test_a_model_stays_where_it_is_in_other_processes_too():
    assert stickiness(IDS[:200]) == {"decisions": 800, "changed": 0, "same_in_another_process": True}


def test_a_growing_share_only_adds():
    found = monotony(IDS[:100], step=10)
    assert (found["lost"], found["on_at_100"]) == (0, 100)


def test_a_look_takes_at_most_two_microseconds():
    """Measured 0.1 and 0.6; the bound is of what was promised, and times ten here, as tests run beside others."""
    assert max(cached_us().values()) < 20
