"""Sentences beside pictures are right in number and tense, and say why there is no picture."""

import pytest

from esper.observability.record import read
from esper.observability.report import context
from tests.observability import directories

PLACE = {"layer_id": "a", "kind": "layer", "covers": ["a"], "inputs": 1, "outputs": 1, "seeds": 2}
MODEL = directories.model(places=[PLACE])


def sensed(epoch, **columns):
    places = {"a": columns} if columns else {}
    return {"event": "telemetry", "time": 4.5, "epoch": epoch, "step": 25 * epoch, "places": places}


def told(directory, part="summaries", **fields):
    given = {"audit": [MODEL], "metrics": [directories.epoch(1)], **fields}
    return {name: one and str(one) for name, one in context(read(directories.write(directory, **given)))[part].items()}


def test_one_is_no_plural(tmp_path):
    said = told(tmp_path, audit=[MODEL, directories.arm_ended(1)])
    assert said["anatomy"].startswith(
        "The host is of type Sequential, with 682 parameters and 1 place at which it could"
    )
    assert said["curves"].endswith("over 1 boundary.")
    assert said["worth"] == "1 comparison; no graft passed."


@pytest.mark.parametrize(
    ("metrics", "audit", "says"),
    [
        ([sensed(1, chunk_variance=[1.0, 2.0])], [], "What 2 seeds sensed at 1 boundary, with two digits."),
        (
            [directories.epoch(1), sensed(1, chunk_variance=[1.0, 2.0]), directories.epoch(2)],
            [],
            "What 2 seeds sensed at 1 of 2 boundaries, with two digits.",
        ),
        (
            [sensed(1, chunk_variance=[1.0])],
            [{"event": "rechunked", "step": 1, "layer_id": "a", "num_seeds": 1}],
            "What the seeds, 2 of them before their number changed, sensed at 1 boundary, with two digits.",
        ),
        (
            [sensed(1, awake={"0": 1})],
            [],
            "Nothing was measured, as where telemetry_rows is zero; only the states of seeds are shown.",
        ),
    ],
)
def test_what_was_sensed(tmp_path, metrics, audit, says):
    assert told(tmp_path, audit=[MODEL, *audit], metrics=metrics)["lattice"] == says


def test_why_nothing_was_measured_is_known_from_the_options(tmp_path):
    config = directories.CONFIG | {"growth": {"telemetry_rows": 0}}
    said = told(tmp_path, config=config, metrics=[sensed(1, awake={"0": 1})])["lattice"]
    assert said == "Nothing was measured (telemetry_rows is 0); only the states of seeds are shown."


def test_what_is_over_is_not_told_as_if_it_went_on(tmp_path):
    over = told(tmp_path / "over", "empty", audit=[MODEL, directories.log()[-1]])
    going_on = told(tmp_path / "going on", "empty")
    assert going_on["worth"] == "No graft has been compared with its twin yet."
    assert over["worth"] == "No graft was compared with its twin."
    assert not any("yet" in reason for name, reason in over.items() if reason and name != "rows")
    assert told(tmp_path / "over", audit=[MODEL, directories.log()[-1]])["anatomy"].endswith("No graft was kept.")


def test_a_session_of_ones_own_is_told_what_only_esper_run_does(tmp_path):
    empty = told(tmp_path, "empty", config=None)
    assert empty["rows"] == "A session of your own trains no controls: only esper run does, at the end of a run."
    assert empty["settings"] == "A session of your own writes no configuration: only esper run does."


def test_a_damaged_result_is_not_awaited(tmp_path):
    assert told(tmp_path, "empty", result={})["rows"] == "The result cannot be read."


def test_a_run_that_has_not_begun_is_not_taken_for_an_old_one(tmp_path):
    empty = told(tmp_path, "empty", audit=[], metrics=[])
    assert {empty[name] for name in ("curves", "anatomy", "lanes", "worth", "lattice")} == {
        "The run has not begun yet."
    }
