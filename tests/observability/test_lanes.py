"""The way of a lifecycle through its states."""

from esper.observability.lanes import lanes
from tests.observability.events import arm_ended, candidate, ended, finished, move, record

ARM = "round1/model/1"
ROUND = {"event": "round_begun", "step": 10, "round": 1, "end_step": 30, "candidates": [candidate(1)]}


def spans(lane) -> list[tuple]:
    return [(span["state"], span["from"], span["to"], span["arm"]) for span in lane["spans"]]


def in_arm():
    return [
        move(1, "GERMINATED", "TRAINING", 10, ARM),
        move(1, "TRAINING", "GRAFTING", 10, ARM),
        move(1, "GRAFTING", "STABILIZATION", 22, ARM),
        move(1, "STABILIZATION", "EVALUATING", 24, ARM),
        arm_ended(1, 25, passed=True),
    ]


def test_a_graft_that_was_kept_waits_while_its_arm_replays_the_window_and_lasts_to_the_end():
    (lane,) = lanes(
        record(
            move(1, "DORMANT", "GERMINATED", 10),
            ROUND,
            *in_arm(),
            move(1, "EVALUATING", "FINE_TUNING", 30, gates={"twin_z": 4.0}),
            move(1, "FINE_TUNING", "FOSSILIZED", 80),
            ended(1, 10, 80, "FOSSILIZED"),
            move(None, "FOSSILIZED", "DORMANT", 80),
            finished(100),
        )
    )
    assert spans(lane) == [
        ("GERMINATED", 10, 30, None),
        ("TRAINING", 10, 10, ARM),
        ("GRAFTING", 10, 22, ARM),
        ("STABILIZATION", 22, 24, ARM),
        ("EVALUATING", 24, 25, ARM),
        ("FINE_TUNING", 30, 80, None),
        ("FOSSILIZED", 80, 100, None),
    ]
    assert (lane["outcome"], lane["label"], lane["reason"]) == ("FOSSILIZED", "the whole model: glu", "because")
    assert lane["spans"][5]["gates"] == {"twin_z": 4.0}


def test_an_open_lifecycle_ends_at_the_last_step_that_is_known():
    epoch = {"event": "epoch", "step": 47}
    (lane,) = lanes(record(move(1, "DORMANT", "GERMINATED", 10), ROUND, *in_arm()[:3], epochs=[epoch]))
    assert spans(lane)[0] == ("GERMINATED", 10, 47, None)
    assert spans(lane)[-1] == ("STABILIZATION", 22, 22, ARM)  # the log does not tell how far the arm came
    assert (lane["outcome"], lane["reason"]) == (None, None)


def test_a_culled_graft_lasts_until_it_is_blended_out():
    (lane,) = lanes(
        record(
            move(1, "DORMANT", "GERMINATED", 0),
            move(1, "EVALUATING", "FINE_TUNING", 30),
            move(1, "FINE_TUNING", "CULLED", 60),
            ended(1, 0, 66, "CULLED"),
            finished(100),
        )
    )
    assert spans(lane)[-1] == ("CULLED", 60, 66, None)


def test_one_that_is_still_being_blended_out_is_so_to_the_last_known_step():
    (lane,) = lanes(record(move(1, "FINE_TUNING", "CULLED", 60), finished(64)))
    assert spans(lane) == [("CULLED", 60, 64, None)]
    assert lane["outcome"] == "CULLED"


def test_cancelled_before_blending_and_rolled_back_are_moments():
    told = lanes(
        record(
            move(1, "DORMANT", "GERMINATED", 5),
            move(1, "GERMINATED", "CANCELLED", 9),
            ended(1, 5, 9, "CANCELLED"),
            move(2, "DORMANT", "GERMINATED", 10),
            move(2, "GERMINATED", "ROLLED_BACK", 40),
            ended(2, 10, 40, "ROLLED_BACK"),
            finished(100),
        )
    )
    assert [spans(lane) for lane in told] == [
        [("GERMINATED", 5, 9, None), ("CANCELLED", 9, 9, None)],
        [("GERMINATED", 10, 40, None), ("ROLLED_BACK", 40, 40, None)],
    ]


def test_a_live_trial_passes_all_states_in_the_run():
    states = ["DORMANT", "GERMINATED", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING"]
    steps = [0, 10, 20, 30, 40, 50]
    moves = [move(1, *states[at : at + 2], step) for at, step in enumerate(steps)]
    (lane,) = lanes(record(*moves, finished(60)))
    assert spans(lane) == [
        (state, first, last, None) for state, first, last in zip(states[1:], steps, [*steps[1:], 60], strict=True)
    ]


def test_lost_lines_leave_what_the_field_report_tells():
    (lane,) = lanes(record(*in_arm(), ended(1, 10, 30, "CULLED"), finished(50)))
    assert spans(lane)[0] == ("GERMINATED", 10, 30, None)
    assert spans(lane)[-1] == ("CULLED", 30, 30, None)


def test_a_lost_field_report_is_found_in_the_result():
    report = {key: value for key, value in ended(1, 10, 30, "FOSSILIZED").items() if key not in ("event", "step")}
    (lane,) = lanes(record(finished(50), result={"lifecycles": [report]}))
    assert spans(lane) == [("GERMINATED", 10, 30, None), ("FOSSILIZED", 30, 50, None)]
    assert lane["blueprint"] == "glu"


def test_lanes_stand_in_order_of_birth_and_name_the_seed():
    told = lanes(
        record(
            move(2, "DORMANT", "GERMINATED", 5, layer_id="a.0:a.2"),
            move(1, "DORMANT", "GERMINATED", 9, layer_id="0", seed_id=3),
            move(3, "DORMANT", "GERMINATED", 9),
        )
    )
    assert [(lane["lifecycle"], lane["label"]) for lane in told] == [
        (1, "0, seed 3"),
        (2, "a.0:a.2"),
        (3, "the whole model"),
    ]


def test_an_older_log_names_no_lifecycle_at_the_end_of_an_arm():
    end = arm_ended(1, 25, passed=True)
    del end["lifecycle"]
    (lane,) = lanes(record(*in_arm()[:4], end))
    assert spans(lane)[-1] == ("EVALUATING", 24, 25, ARM)
