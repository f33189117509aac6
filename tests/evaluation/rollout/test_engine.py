"""What runs say becomes a decision: a step with enough good data, back for each kind of harm, and never on no data."""

from dataclasses import replace

import numpy as np
import pytest

from esper.evaluation.rollout.audit import State
from esper.evaluation.rollout.compare import blocks, bound_of_differences, bound_of_rates
from esper.evaluation.rollout.engine import decide, settled
from esper.evaluation.rollout.health import Point, Unit, grows_without_end, step_time
from tests.evaluation.rollout.world import PLAN, health, terms
from tests.few import few


def begun(**criteria) -> State:
    state = State(terms(**criteria), 0.0)
    state.apply({"event": "set", "time": 0.0})
    return state


def alternating(count: int, **with_flag) -> list:
    """Runs without the flag and with it, one after the other."""
    return [health(n, is_on=n % 2 == 1, **(with_flag if n % 2 else {})) for n in range(2 * count)]


def points(memory) -> tuple[Point, ...]:
    return tuple(Point(float(at), at, int(1e9 * held)) for at, held in enumerate(memory))


def test_enough_good_data_take_the_next_step_and_the_last_one_completes():
    state = begun()
    for number, wanted in enumerate(("promote", "promote", "complete")):
        runs = [health(10 * number + n, is_on=n % 2 == 1) for n in range(4)]
        decision = decide(state, runs, now=5000.0)
        assert decision.verdict == wanted, decision.why
        state.apply({"time": 5000.0, **decision.line()})
        state.apply({"event": "set", "time": 5000.0})
    assert (state.outcome, state.percent) == ("completed", 100.0)


def test_runs_of_the_step_before_do_not_count_for_the_next():
    state = begun()
    state.apply({"time": 1.0, **decide(state, alternating(2), now=5000.0).line()})
    assert decide(state, alternating(2), now=5000.0).why.startswith("waits for data: 0 of 2 runs with the flag on")


@pytest.mark.parametrize("is_on", [True, False])
def test_a_step_needs_both_cohorts(is_on):
    runs = [health(n, is_on=is_on) for n in range(50)]
    decision = decide(begun(), runs, now=5000.0)
    assert decision.verdict == "hold"
    assert f"0 of 2 runs with the flag {'off' if is_on else 'on'}" in decision.why


def test_no_data_never_promote_and_are_missing_in_the_end():
    assert decide(begun(patience_s=1000.0), [], now=999.0).verdict == "hold"
    decision = decide(begun(patience_s=1000.0), [], now=1001.0)
    assert (decision.verdict, decision.why[:16]) == ("rollback", "data are missing")


def test_runs_that_fall_silent_are_missing_though_others_go_on():
    runs = [*alternating(1), health(5000, is_on=False)]
    assert decide(begun(patience_s=1000.0), runs, now=6000.0).why.startswith("data are missing: runs with the flag on")


def test_a_step_lasts_as_long_as_it_must():
    state = begun(min_seconds=6000.0)
    assert decide(state, alternating(3), now=5000.0).why.startswith("waits for time")
    assert decide(state, alternating(3), now=6001.0).verdict == "promote"


HARM = {
    "step time": {"step_s": 1.5},
    "loss": {"loss": 0.8},
    "errors": {"trouble": "rollback at step 7: its loss exploded"},
    "leaks": {"points": points(1 + 0.05 * np.arange(40))},
}


@pytest.mark.parametrize("measure", HARM)
def test_what_gets_worse_is_taken_back(measure):
    decision = decide(begun(), alternating(25, **HARM[measure]), now=5000.0)
    assert decision.verdict == "rollback"
    assert decision.why.startswith(f"worse: {measure}")


@pytest.mark.parametrize("measure", HARM)
def test_what_is_worse_without_the_flag_too_is_no_harm(measure):
    runs = [health(n, is_on=n % 2 == 1, **HARM[measure]) for n in range(50)]
    assert decide(begun(), runs, now=5000.0).verdict != "rollback"


def test_what_looks_worse_but_is_not_certain_waits():
    assert decide(begun(), alternating(3, step_s=1.5), now=5000.0).why.startswith(
        "waits for certainty: step time +50.0"
    )


def test_a_doubt_that_no_run_without_the_flag_can_clear_takes_it_back_in_the_end():
    state = begun(patience_s=1000.0)
    for _ in range(2):
        state.apply({"time": 0.0, **decide(state, [], 0.0).line(), "verdict": "promote"})
        state.apply({"event": "set", "time": 5000.0})
    runs = [health(n, is_on=n >= 5, trouble="fault at step 7" if n == 5 else None) for n in range(15)]
    runs = [replace(run, last=6000.0) for run in runs]
    assert decide(state, runs, now=5900.0).why.startswith("waits for certainty: errors")
    decision = decide(state, runs, now=6001.0)
    assert (decision.verdict, decision.why[:21]) == ("rollback", "in doubt for too long")


def test_runs_are_compared_with_their_kind_only():
    runs = [health(n, is_on=n % 2 == 1, step_s=1 + n % 2, kind="cnn" if n % 2 else "mlp") for n in range(60)]
    decision = decide(begun(), runs, now=5000.0)
    assert decision.verdict == "promote"
    assert all(one.blocks == 0 for one in decision.comparisons)


def test_one_damaged_run_is_no_reason_and_two_are():
    runs = [replace(run, damage="line 7 is damaged") if run.run == "run-1" else run for run in alternating(10)]
    assert decide(begun(), runs, now=5000.0).verdict == "promote"
    runs = [replace(run, damage="line 7 is damaged") if run.run == "run-3" else run for run in runs]
    decision = decide(begun(), runs, now=5000.0)
    assert (decision.verdict, decision.why[:16]) == ("rollback", "data are corrupt")


def test_a_silent_run_has_crashed_and_a_going_one_counts_once_it_tells_enough():
    silent = health(1, is_on=True, is_finished=False)
    told = {unit.measure: unit.value for unit in decide(begun(), [silent], now=silent.last + 901.0).units}
    assert told["errors"] == 1
    going = {unit.measure for unit in decide(begun(), [silent], now=silent.last + 1.0).units}
    assert going == {"step time"}


def test_what_is_known_of_a_run_is_known_once():
    state = begun()
    state.apply({"time": 1.0, **decide(state, alternating(2), now=5000.0).line()})
    assert decide(state, alternating(2), now=5001.0).units == []
    assert settled(state) == {f"run-{number}" for number in range(4)}


def test_a_rollout_that_was_taken_back_stays_so():
    state = begun()
    state.apply({"event": "taken_back", "time": 1.0, "verdict": "rollback", "why": "by hand"})
    assert (state.outcome, state.percent, state.is_set) == ("rolled back", 0.0, False)


AT = np.arange(40)


@pytest.mark.parametrize(
    ("memory", "grows"),
    [
        (1 + 0.02 * AT, True),
        (1 + 0.02 * AT + 0.02 * (-1.0) ** AT, True),
        (np.ones(40), False),
        (1 - 0.5 * np.exp(-AT / 4), False),
        (1 + 0.3 * (AT >= 25), False),
        (1 + 0.15 * (AT >= 22) + 0.15 * (AT >= 33), False),
        (1 + 0.05 * np.sin(AT), False),
        (2 - 0.02 * AT, False),
        (1 + 0.001 * AT, False),
        (1 + 0.1 * AT[:11], False),
    ],
    ids=["leak", "noisy", "flat", "warm-up", "step", "two-steps", "wave", "falls", "slow", "too-short"],
)
def test_what_grows_without_end(memory, grows):
    assert grows_without_end(points(memory)) is grows


def test_memory_that_is_not_told_says_nothing():
    assert not grows_without_end(tuple(Point(float(at), at) for at in range(40)))


def test_step_time_counts_all_that_a_run_does():
    assert step_time((Point(10.0, 100), Point(20.0, 200), Point(60.0, 300))) == pytest.approx(0.25)
    assert step_time((Point(10.0, 100),)) is None


def unit(run: int, is_on: bool, value: float = 0.0) -> Unit:
    return Unit("loss", f"{run}", "mlp", is_on, value)


def test_no_run_is_in_two_blocks_and_leftovers_serve_when_none_come():
    units = [unit(n, n % 20 == 19) for n in range(60)] + [unit(n, True) for n in range(60, 66)]
    found = blocks(units)
    assert [(len(on), len(off)) for on, off in found] == [(1, 9)] * 3 + [(3, 9)] * 2
    runs = [one.run for on, off in found for one in (*on, *off)]
    assert len(runs) == len(set(runs))


@pytest.mark.parametrize("size", few([1, 5], [5]))
def test_bounds_hold_at_every_look(size):
    """Of 400 null experiments of 60 looks at most 5 % may ever be wrong; here the limit is three errors above."""
    random, wrong_rate, wrong_difference = np.random.default_rng(3), 0, 0
    for _ in range(400):
        rates = random.binomial(1, 0.25, 60) - random.binomial(size, 0.2, 60) / size  # exactly at a margin of 0.05
        bound = bound_of_rates(rates, 0.05)
        wrong_rate += bound is not None and bound > 0.05
        differences = list(random.standard_cauchy((60, 1)) - random.standard_cauchy((60, size)))
        bound = bound_of_differences(differences, 0.05, 0.0)
        wrong_difference += bound is not None and bound > 0
    assert max(wrong_rate, wrong_difference) <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_bounds_come_close():
    random = np.random.default_rng(3)
    rates = random.binomial(1, 0.5, 300) - random.binomial(1, 0.1, 300)
    assert 0.2 < (bound_of_rates(rates.astype(float), 0.05) or 0) < 0.4
    differences = list(random.standard_normal((300, 1)) + 2 - random.standard_normal((300, 4)))
    assert 1.5 < (bound_of_differences(differences, 0.05, 0.0) or 0) < 2


def test_plan_is_as_the_tests_say():
    assert begun().percent == PLAN[0]
