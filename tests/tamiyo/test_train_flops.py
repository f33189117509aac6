"""What growth may still cost under ``max_train_flops``."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.tamiyo.shield import veto
from esper.tamiyo.sizing import budget_per_row, options
from esper.tamiyo.train_flops import STEP_FLOPS, largest_graft, num_arms, room, round_steps, worst_case
from tests.tamiyo.seen import NOW, place

CONFIG = GrowthConfig(
    max_train_flops=1.5, blueprints=("bottleneck_mlp",), keep_looks=(0.6, 0.9), ramp_fraction=0.01, min_targets=0
)
SEEN = replace(
    NOW,
    places=tuple(replace(one, rows=10) for one in NOW.places),
    step=100,
    planned_steps=1000,
    train_flops=100 * 60_000,
    step_flops=60_000.0,
    host_multiply_adds=10_000,
    evaluation_flops=30_000,
)
"""100 steps of 1,000 are done; a window is another 100 long, and a blend-out 10."""


def test_without_growth_the_whole_surplus_is_there_but_for_the_end_of_a_run():
    """A blend-out, and two evaluations."""
    assert room(SEEN, CONFIG) == 0.5 * 1000 * 60_000 - 10 * 60_000 - 2 * 30_000


def test_what_was_spent_and_what_is_under_way_is_gone():
    free = room(SEEN, CONFIG)
    assert room(replace(SEEN, train_flops=SEEN.train_flops + 7), CONFIG) == free - 7
    assert room(replace(SEEN, open_evaluations=3), CONFIG) == free - 3 * 30_000
    assert room(replace(SEEN, open_arm_steps=5), CONFIG) == free - 5 * 60_000
    grown = replace(SEEN, grown_multiply_adds=100)
    assert room(grown, CONFIG) == free - STEP_FLOPS * 100 * (900 + 10)
    assert room(replace(grown, first_multiply_adds=100), CONFIG) == free  # it was there when the run began


@pytest.mark.parametrize("compare", ["flops", "steps"])
def test_the_worst_case_of_a_round(compare):
    """Both arms to their end and judged, at equal FLOPs the run at three marks too; then the larger graft for the 800
    steps that are left and a blend-out, and five more evaluations."""
    config = replace(CONFIG, compare=compare)
    to_the_end = 100 * (2 * 60_000 + 6 * 300)
    arms = {"flops": 2 * 100 * 60_000, "steps": to_the_end}[compare]
    judged = {"flops": 2 + 3, "steps": 2}[compare]
    arms += (judged + 1) * 4 * (60_000 + 6 * 200)
    expected = arms + 6 * 200 * (800 + 10) + (judged + 5) * 30_000 * (1 + 200 / 10_000)
    assert worst_case([100, 200], SEEN, config, "round") == pytest.approx(expected)


@pytest.mark.parametrize("judge", ["twin", "ablation"])
def test_the_worst_case_of_a_live_trial(judge):
    """The twin may replay all that is left of the run."""
    config = replace(CONFIG, judge=judge)
    expected = (judge == "twin") * 900 * 60_000 + 6 * 200 * (900 + 10) + 5 * 30_000 * 1.02
    assert worst_case([200], SEEN, config, "live") == pytest.approx(expected)


def test_candidates_that_wait_are_part_of_the_round():
    waiting = replace(SEEN, waiting_multiply_adds=(300,))
    assert worst_case([100], waiting, CONFIG, "round") == worst_case([300, 100], SEEN, CONFIG, "round")
    live = worst_case([100], waiting, CONFIG, "live")
    assert live == worst_case([100], SEEN, CONFIG, "live") + worst_case([300], SEEN, CONFIG, "round")


def test_half_of_what_there_is_goes_into_arms():
    arm = round_steps(SEEN, CONFIG) * 60_000 + 30_000
    assert num_arms(SEEN, replace(CONFIG, max_train_flops=None)) == CONFIG.max_candidates
    for bound in (1.1, 1.3, 1.5, 1.9, 9.0):
        config = replace(CONFIG, max_train_flops=bound)
        assert num_arms(SEEN, config) == max(1, min(4, int(0.5 * room(SEEN, config) / arm)))
    assert num_arms(SEEN, replace(CONFIG, max_train_flops=1.01)) == 1
    assert num_arms(SEEN, replace(CONFIG, max_train_flops=9.0)) == 4


@given(
    st.floats(1.001, 4.0),
    st.sampled_from(["flops", "steps"]),
    st.sampled_from(["round", "live"]),
    st.lists(st.integers(0, 5000), max_size=3),
    st.integers(0, 900),
)
def test_the_largest_graft_is_the_largest_that_keeps_the_bound(bound, compare, trial, waiting, step):
    config = replace(CONFIG, max_train_flops=bound, compare=compare)
    seen = replace(SEEN, step=step, train_flops=step * 60_000, waiting_multiply_adds=tuple(waiting))
    largest, free = largest_graft(seen, config, trial), room(seen, config)
    count = max(1, num_arms(seen, config) - len(waiting)) if trial == "round" else 1
    assert largest < 0 or worst_case([largest] * count, seen, config, trial) <= free
    assert worst_case([largest + 1] * count, seen, config, trial) > free


@pytest.mark.parametrize("trial", ["round", "live"])
@pytest.mark.parametrize("bound", [1.3, 1.5, 2.0, 3.0])
def test_what_is_offered_passes_the_shield(bound, trial):
    """As many candidates as the bound pays for, each as large as it may be."""
    config = replace(CONFIG, max_train_flops=bound, trial=trial)
    count = num_arms(SEEN, config) if trial == "round" else 1
    asked: dict[tuple[str, int], list[str]] = {}
    for one in SEEN.places[:count]:
        for option in options(one, "all", SEEN, config):
            asked.setdefault((option.blueprint.id, option.blueprint.settings["hidden"]), []).append(one.layer_id)
    commands = [together(names, blueprint, {"hidden": hidden}, trial) for (blueprint, hidden), names in asked.items()]
    assert commands or (bound < 2.0 and trial == "live")
    assert [reason for one in commands if (reason := veto(one, SEEN, config))] == []


def test_one_more_than_it_pays_for_does_not():
    config = replace(CONFIG, max_train_flops=1.3)
    settings = options(SEEN.places[0], "all", SEEN, config)[0].blueprint.settings
    names = [one.layer_id for one in SEEN.places[:4]]
    assert veto(together(names[:1], "bottleneck_mlp", settings), SEEN, config) is None
    reason = veto(together(names, "bottleneck_mlp", settings), SEEN, config)
    assert reason.startswith("FLOPs: the run could come to ")
    assert "above max_train_flops 1.3 x the 6e+07 without growth" in reason


def together(names, blueprint, settings, trial="round") -> Command:
    """One command for several places."""
    first, *others = names
    also = dict.fromkeys(others, "all")
    return Command(first, "all", State.GERMINATED, blueprint=blueprint, settings=dict(settings), trial=trial, also=also)


def test_before_a_step_was_done_it_can_not_be_told():
    fresh = replace(SEEN, step_flops=0.0)
    assert budget_per_row(place("0", rows=4), fresh, CONFIG) < 0
    command = Command("0", "all", State.GERMINATED, blueprint="bottleneck_mlp", settings={"hidden": 1})
    assert "no training step has passed" in veto(command, fresh, CONFIG)
    assert veto(command, fresh, replace(CONFIG, max_train_flops=None)) is None


def test_training_in_isolation_cannot_be_planned():
    with pytest.raises(ConfigError, match=r"max_train_flops 1\.5 cannot be kept with objective 'reconstruction'"):
        GrowthConfig(max_train_flops=1.5, objective="reconstruction")


def test_an_arm_of_a_colony_takes_as_many_steps_as_the_run_whatever_single_places_do():
    at_equal_steps = worst_case([200], SEEN, replace(CONFIG, compare="steps"), "round")
    assert worst_case([200], SEEN, CONFIG, "round", are_colonies=True) == at_equal_steps
    assert worst_case([20_000], SEEN, CONFIG, "round", are_colonies=True) > worst_case([20_000], SEEN, CONFIG, "round")


def test_a_colony_is_sized_as_the_only_candidate_of_its_round():
    largest = largest_graft(SEEN, CONFIG, "round", is_colony=True)
    fits = [worst_case([one], SEEN, CONFIG, "round", are_colonies=True) for one in (largest, largest + 1)]
    assert fits[0] <= room(SEEN, CONFIG) < fits[1]
