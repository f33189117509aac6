"""What grafts were worth: means, intervals, and against what."""

import pytest

from esper.observability.worth import gain_over_twin, worth
from tests.observability.events import arm_ended, candidate, move, record

LOOK = {"event": "keep_look", "step": 60, "lifecycle": 1, "layer_id": "", "look": 1, "passed": True}
TRIAL = {"event": "trial_ended", "step": 50, "trial": 1, "adopted": [], "reason": "x", "passed": True}
MEASURED = {"twin_z": 2.0, "gain": 0.2, "gain_se": 0.1}


def test_an_arm_is_compared_with_its_twin():
    (row,) = worth(record(arm_ended(1, 20, passed=True)))
    assert (row["against"], row["mean"], row["z"], row["passed"], row["step"]) == ("its twin", 0.5, 4.0, True, 20)
    assert (row["low"], row["high"]) == pytest.approx((0.5 - 1.959964 * 0.125, 0.5 + 1.959964 * 0.125))


def test_a_look_compares_with_the_run_without_the_graft():
    look = {**LOOK, "ablation_z": 8.0, "ablation_gain": 0.8, "ablation_gain_se": 0.1}
    (row,) = worth(record(look))
    assert (row["against"], row["mean"], row["z"], row["lifecycle"]) == ("the run without it", 0.8, 8.0, 1)


@pytest.mark.parametrize("missing", ["gain", "gain_se"])
def test_without_mean_or_error_there_is_no_interval(missing):
    (row,) = worth(record(arm_ended(1, 20, passed=False, **{missing: None})))
    assert (row["low"], row["high"], row["z"]) == (None, None, 4.0)


def test_an_older_log_tells_z_only():
    end = arm_ended(1, 20, passed=True)
    del end["gain"], end["gain_se"], end["lifecycle"]
    (row,) = worth(record(end))
    assert (row["mean"], row["z"], row["label"], row["lifecycle"]) == (None, 4.0, "round1/model/1", None)


def test_a_live_trial_of_one_graft_is_its_own():
    begun = {"event": "trial_begun", "step": 0, "trial": 1, "candidates": [candidate(4), candidate(5)]}
    told = record(begun, move(5, "STABILIZATION", "EVALUATING", 40), {**TRIAL, **MEASURED})
    (row,) = worth(told)  # lifecycle 4 ended before it could be judged
    assert (row["lifecycle"], row["label"], row["mean"]) == (5, "the whole model: glu", 0.2)


def test_grafts_of_one_live_trial_are_judged_together_and_each_by_ablation():
    begun = {"event": "trial_begun", "step": 0, "trial": 1, "candidates": [candidate(4), candidate(5, layer_id="0")]}
    gates = {"ablation_z": 3.0, "ablation_gain": 0.3, "ablation_gain_se": 0.1}
    moves = [move(number, "STABILIZATION", "EVALUATING", 40) for number in (4, 5)]
    adopted = [move(number, "EVALUATING", "FINE_TUNING", 50, gates=gates) for number in (4, 5)]
    rows = worth(record(begun, *moves, *adopted, {**TRIAL, **MEASURED}))
    assert [(row["lifecycle"], row["against"], row["mean"]) for row in rows] == [
        (4, "the run without it", 0.3),
        (5, "the run without it", 0.3),
        (None, "its twin", 0.2),
    ]
    assert rows[2]["label"] == "the whole model: glu + 0: glu"
    assert gain_over_twin(rows, 4) is None


def test_a_trial_without_a_verdict_tells_no_worth():
    assert worth(record({key: value for key, value in TRIAL.items() if key != "passed"})) == []


def test_a_graft_has_its_gain_over_its_twin():
    rows = worth(record(arm_ended(1, 20, passed=True), {**LOOK, "ablation_z": 1.0, "ablation_gain": 9.0}))
    assert gain_over_twin(rows, 1)["mean"] == 0.5
    assert gain_over_twin(rows, 2) is None
