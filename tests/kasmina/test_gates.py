import math

import pytest

from esper.contracts.lifecycle import State
from esper.runtime.judging.gates import LEAST_LEAD, gate

# What each gate asks for, with values that just pass.
PASSING = {
    State.TRAINING: {"has_slot": True},
    State.GRAFTING: {"is_finite": True},
    State.STABILIZATION: {"is_finite": True, "alpha": 1.0},
    State.EVALUATING: {"is_finite": True, "held_steps": 1},
    State.FINE_TUNING: {
        "is_finite": True,
        "twin_z": 2.33,
        "has_metric": True,
        "metric_gain": 0.0,
        "is_joint": True,
        "ablation_z": 0.0,
        "variation": 0.05,
        "is_at_equal_steps": True,
        "lead": LEAST_LEAD,
    },
    State.FOSSILIZED: {"is_finite": True, "ablation_z": 2.33, "confirm_margin": 0.0},
}
FAILING = {
    "has_slot": False,
    "is_finite": False,
    "alpha": 0.99,
    "held_steps": 0,
    "twin_z": 2.32,
    "metric_gain": -0.001,
    "ablation_z": 2.32,
    "variation": 0.04,
    "lead": LEAST_LEAD - 1e-6,
    "confirm_margin": -1e-6,
}
PLAIN = {
    "is_finite": True,
    "is_at_equal_steps": False,
    "twin_z": 3.0,
    "variation": 0.5,
    "has_metric": False,
    "is_joint": False,
}
"""Of one graft at equal FLOPs, in a task without a metric; the grow gate opens."""
TERMS = [(target, name) for target, values in PASSING.items() for name in values]
SWITCHES = ("has_metric", "is_joint", "is_at_equal_steps")
NUMBERS = [term for term in TERMS if term[1] not in SWITCHES]


@pytest.mark.parametrize("target", PASSING, ids=lambda state: state.name)
def test_a_gate_opens_where_all_its_terms_hold(target):
    result = gate(target, PASSING[target])
    assert result.passed
    assert str(result) == "passed"


@pytest.mark.parametrize(("target", "name"), TERMS, ids=str)
def test_what_was_not_measured_never_passes(target, name):
    absent = {key: value for key, value in PASSING[target].items() if key != name}
    for measured in (absent, absent | {name: None}):
        result = gate(target, measured)
        assert not result.passed
        assert result.failures == (f"{name} is missing",)


@pytest.mark.parametrize(("target", "name"), NUMBERS, ids=str)
def test_nan_never_passes(target, name):
    result = gate(target, PASSING[target] | {name: math.nan})
    assert not result.passed
    assert str(result).startswith(f"{name} is nan")


@pytest.mark.parametrize(("target", "name"), NUMBERS, ids=str)
def test_each_term_alone_shuts_the_gate_and_is_named(target, name):
    value = -0.01 if (target, name) == (State.FINE_TUNING, "ablation_z") else FAILING[name]
    result = gate(target, PASSING[target] | {name: value})
    assert not result.passed
    assert len(result.failures) == 1
    assert result.failures[0].startswith(f"{name} is ")


def test_a_metric_that_the_task_does_not_have_is_no_term():
    assert gate(State.FINE_TUNING, PLAIN).passed
    assert gate(State.FINE_TUNING, PLAIN | {"metric_gain": None}).passed


def test_a_metric_that_the_task_has_and_that_was_not_measured_is_missing():
    result = gate(State.FINE_TUNING, PLAIN | {"has_metric": True})
    assert result.failures == ("metric_gain is missing",)


@pytest.mark.parametrize(("target", "name"), [(State.FINE_TUNING, "twin_z"), (State.FOSSILIZED, "ablation_z")])
def test_the_z_score_asked_for_is_configuration(target, name):
    assert not gate(target, PASSING[target], gate_z=3.0).passed
    assert gate(target, PASSING[target] | {name: 1.0}, gate_z=1.0).passed


def test_ablation_alone_never_opens_the_grow_gate():
    """A host leans on whatever was blended in: a knock-out passes for random grafts."""
    measured = {name: value for name, value in PLAIN.items() if name != "twin_z"}
    assert not gate(State.FINE_TUNING, measured | {"ablation_z": 50.0, "is_joint": True}).passed


def test_ablation_vetoes_only_where_several_grafts_were_on_trial_together():
    measured = PLAIN | {"ablation_z": -0.5}
    assert not gate(State.FINE_TUNING, measured | {"is_joint": True}).passed
    assert gate(State.FINE_TUNING, measured).passed


def test_ablation_decides_where_no_twin_was_asked_for():
    measured = {"is_finite": True, "ablation_z": 2.4, "variation": 0.05}
    assert gate(State.FINE_TUNING, measured, judge="ablation").passed
    assert not gate(State.FINE_TUNING, measured | {"ablation_z": 2.3}, judge="ablation").passed
    assert not gate(State.FINE_TUNING, measured | {"variation": 0.04}, judge="ablation").passed
    without = {"is_finite": True, "twin_z": 9.0, "variation": 0.5}
    assert not gate(State.FINE_TUNING, without, judge="ablation").passed


def test_all_failures_are_told_at_once():
    result = gate(State.FINE_TUNING, {})
    missing = ("is_finite", "twin_z", "has_metric", "is_joint", "variation", "is_at_equal_steps")
    assert str(result) == "; ".join(f"{name} is missing" for name in missing)
