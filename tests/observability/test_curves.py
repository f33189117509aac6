"""Learning curves of run, arms and controls, and what happened along the run."""

from esper.observability.curves import curves
from esper.observability.measures import metric_name
from tests.observability.events import arm_ended, candidate, move, record

FLOPS = {"run_flops": 100, "arm_flops": 20, "judging_flops": 3}
EPOCH = {"event": "epoch", "epoch": 1, "step": 10, "lr": 0.1, "train_loss": 2.0, "val_loss": 2.5, "val_metric": None}
TRIAL = {"event": "trial_ended", "step": 50, "trial": 1, "adopted": [], "reason": "lost"}


def test_the_flops_of_the_run_are_all_that_training_took():
    run = curves(record(epochs=[{**EPOCH, **FLOPS}]))["run"]
    assert run == {
        "steps": [10],
        "flops": [123],
        "train_losses": [2.0],
        "val_losses": [2.5],
        "val_metrics": [None],
    }


def test_only_the_winner_of_a_round_is_adopted():
    end = {"event": "round_ended", "step": 30, "round": 1, "adopted": candidate(2), "reason": "beat the twin"}
    arms = curves(record(arm_ended(1, 20, passed=True), arm_ended(2, 25, passed=True), end))["arms"]
    assert [(arm["lifecycle"], arm["passed"], arm["adopted"]) for arm in arms] == [(1, True, False), (2, True, True)]
    assert (arms[1]["steps"], arms[1]["end_step"], arms[1]["end_flops"]) == ([20, 25], 25, 200)


def test_an_arm_without_a_curve_still_has_its_end():
    """As in logs of an older version."""
    end = arm_ended(1, 20, passed=False)
    del end["curve"], end["lifecycle"]
    (arm,) = curves(record(end))["arms"]
    assert (arm["steps"], arm["end_step"], arm["end_flops"], arm["label"]) == ([], 20, None, "round1/model/1")


def test_the_twin_of_a_live_trial_is_an_arm_of_no_lifecycle():
    curve = {"steps": [40, 50], "flops": [1, 2], "train_losses": [1.0, 0.9]}
    lost = {**TRIAL, "passed": False, "select_loss": 0.7, "twin_select_loss": 0.6, "twin_z": -3.0, "curve": curve}
    (arm,) = curves(record(lost))["arms"]
    assert (arm["kind"], arm["lifecycle"], arm["select_loss"], arm["steps"]) == ("twin", None, 0.6, [40, 50])
    assert arm["adopted"]  # the run has become its twin
    (arm,) = curves(record({**lost, "passed": True}))["arms"]
    assert not arm["adopted"]


def test_a_trial_that_ended_without_a_verdict_had_no_twin():
    assert curves(record(TRIAL))["arms"] == []


def test_controls_of_an_unfinished_run_are_those_that_are_done():
    curve = {"steps": [1], "flops": [2], "train_losses": [3.0], "val_losses": [4.0], "val_metrics": [0.5]}
    told = record(progress={"seconds": 1.0, "rows": {"host_on": {"curve": curve}}})
    assert curves(told)["controls"] == [{"name": "host_on", **curve}]


def test_controls_that_were_not_trained_or_not_recorded_are_left_out():
    rows = {"grown": {"curve": None}, "host_on": {"curve": None}, "static": None}
    assert curves(record(result={"rows": rows, "lifecycles": []}))["controls"] == []


def test_marks_are_transitions_of_the_run_itself_while_seeds_are_awake():
    told = record(
        move(1, "DORMANT", "GERMINATED", 10),
        move(1, "GERMINATED", "TRAINING", 10, "round1/model/1"),
        move(1, "GERMINATED", "CULLED", 30),
        move(None, "CULLED", "DORMANT", 90),
    )
    marks = curves(told)["marks"]
    assert [(mark["step"], mark["target"], mark["flops"]) for mark in marks] == [
        (10, "GERMINATED", 106),
        (30, "CULLED", 306),
    ]


def test_the_metric_is_named_by_the_result_or_known_from_the_curves():
    assert metric_name(record(result={"metric": "top-5"})) == "top-5"
    assert metric_name(record(epochs=[EPOCH])) is None
    assert metric_name(record(epochs=[{**EPOCH, "val_metric": 0.5}])) == "accuracy"
