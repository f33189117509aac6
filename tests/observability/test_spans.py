"""Lines of a run as spans: one tree, whatever happens to the run."""

import itertools
import subprocess
import sys
from typing import Any

import pytest

from esper.observability.span_tree import Spans
from esper.observability.spans import MOST_NOTES, Span, span_id, span_of, trace_id

RUN = "digits-1"
MODEL = {"event": "model", "time": 0.0, "step": 0, "planned_steps": 100, "type": "Sequential", "parameters": 5}
CANDIDATES = [{"lifecycle": 1}, {"lifecycle": 2}]


def moved(time: float, lifecycle: int | None, target: str, arm: str | None = None) -> dict[str, Any]:
    about = {"layer_id": "0", "seed_id": "all", "who": "tamiyo", "reason": "why", "step": 10, "source": "DORMANT"}
    return {"event": "transition", "time": time, "lifecycle": lifecycle, "target": target, "arm": arm, **about}


def arm(time: float, name: str, lifecycle: int) -> dict[str, Any]:
    about = {"round": 1, "step": 30, "steps": 20, "verdict": "passed", "passed": True, "twin_z": None}
    return {"event": "arm_ended", "time": time, "arm": name, "lifecycle": lifecycle, **about}


def filed(time: float, lifecycle: int) -> dict[str, Any]:
    return {"event": "field_report", "time": time, "step": 40, "lifecycle": lifecycle, "outcome": "CULLED"}


def epoch(time: float, number: int) -> dict[str, Any]:
    return {"event": "epoch", "time": time, "epoch": number, "step": 10 * number, "val_loss": 1.0, "val_metric": None}


LINES = [
    MODEL,
    epoch(1.0, 1),
    moved(1.1, 1, "GERMINATED"),
    moved(1.1, 2, "GERMINATED"),
    {"event": "round_begun", "time": 1.2, "step": 10, "round": 1, "end_step": 30, "candidates": CANDIDATES},
    {"event": "checkpoint", "time": 1.3, "step": 10, "seconds": 0.05, "bytes": 10},
    epoch(2.0, 2),
    moved(3.0, 1, "GRAFTING", "round1/0/glu"),
    arm(4.0, "round1/0/glu", 1),
    moved(4.1, 2, "GRAFTING", "round1/2/glu"),
    arm(5.0, "round1/2/glu", 2),
    filed(5.1, 2),
    {"event": "round_ended", "time": 5.2, "step": 30, "round": 1, "adopted": CANDIDATES[0], "reason": "beat the twin"},
    moved(5.3, 1, "FINE_TUNING"),
    {"event": "note", "time": 5.4, "step": 30, "text": "a sentence"},
    filed(6.0, 1),
    epoch(6.0, 3),
    {"event": "finished", "time": 6.1, "step": 30, "select_loss": 1.0, "select_metric": None, "train_flops": 9},
    {"event": "checkpoint", "time": 6.2, "step": 30, "seconds": 0.05},
]


def folded(lines: list[dict[str, Any]], at: float = 7.0, error: str | None = None) -> list[Span]:
    spans = Spans(RUN)
    return [*itertools.chain.from_iterable(map(spans, lines)), *spans.close(at, error)]


def check_tree(spans: list[Span]) -> None:
    by_id = {one.id: one for one in spans}
    assert len(by_id) == len(spans)
    assert [one.kind for one in spans if one.parent is None] == ["run"]
    for one in spans:
        assert one.begin <= one.end
        assert set(one.links) <= set(by_id)
        if one.parent is not None:
            assert by_id[one.parent].begin <= one.begin
            assert one.end <= by_id[one.parent].end


def test_a_run_is_one_tree_with_the_times_of_its_lines():
    spans = folded(LINES)
    check_tree(spans)
    times = [(one.kind, one.begin, one.end) for one in spans]
    assert times == [
        ("epoch", 0.0, 1.0),
        ("checkpoint", 1.25, 1.3),
        ("epoch", 1.0, 2.0),
        ("arm", 3.0, 4.0),
        ("arm", 4.1, 5.0),
        ("lifecycle", 1.1, 5.1),
        ("round", 1.2, 5.2),
        ("lifecycle", 1.1, 6.0),
        ("epoch", 2.0, 6.0),
        ("checkpoint", pytest.approx(6.15), 6.2),
        ("run", 0.0, 6.2),
    ]
    arms = [one for one in spans if one.kind == "arm"]
    assert [one.links for one in arms] == [(span_id(RUN, "lifecycle", 1),), (span_id(RUN, "lifecycle", 2),)]
    assert spans[-1].is_well
    assert [one.name for one in spans[7].moments] == ["GERMINATED", "GRAFTING", "FINE_TUNING"]
    assert [one.name for one in spans[-1].moments] == ["note"]


@pytest.mark.parametrize("cut", range(1, len(LINES) - 2))
@pytest.mark.parametrize(("error", "outcome"), [(None, "interrupted"), ("RuntimeError: broken", "failed")])
def test_a_run_that_ends_anywhere_is_one_tree(cut, error, outcome):
    spans = folded(LINES[:cut], 7.0, error)
    check_tree(spans)
    assert (spans[-1].end, spans[-1].error, spans[-1].attributes["esper.outcome"]) == (7.0, error, outcome)


def test_another_process_gives_the_spans_of_a_run_the_same_ids():
    """So one that goes on with a run tells the rest of the same tree."""
    code = "from tests.observability.test_spans import LINES, folded; print(*(one.id for one in folded(LINES)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [one.id for one in folded(LINES)]


def test_a_span_that_was_interrupted_has_its_id_when_it_is_told_whole():
    cut = LINES.index(arm(4.0, "round1/0/glu", 1)) + 1
    interrupted, whole = ({one.kind: one.id for one in folded(lines)} for lines in (LINES[:cut], LINES))
    assert interrupted["run"] == whole["run"]
    assert interrupted["round"] == whole["round"]


def test_lines_name_the_spans_to_which_they_belong():
    known = {one.id: one for one in folded(LINES)}
    kinds = [known[span_of(RUN, line)].kind for line in LINES]
    assert kinds == [
        *("run", "epoch", "lifecycle", "lifecycle", "round", "checkpoint", "epoch", "lifecycle", "arm", "lifecycle"),
        *("arm", "lifecycle", "round", "lifecycle", "run", "lifecycle", "epoch", "run", "checkpoint"),
    ]


def test_arms_that_end_in_one_moment_are_two():
    """They may run side by side."""
    lines = [*LINES[:5], moved(3.0, 1, "GRAFTING", "round1/0/glu"), moved(3.1, 2, "GRAFTING", "round1/2/glu")]
    spans = folded([*lines, arm(4.0, "round1/0/glu", 1), arm(4.0, "round1/2/glu", 2)])
    check_tree(spans)
    assert sum(one.kind == "arm" for one in spans) == 2


def test_the_twin_of_a_live_trial_has_an_arm():
    begun = {"event": "trial_begun", "time": 1.2, "step": 10, "trial": 1, "candidates": CANDIDATES[:1]}
    ended = {"event": "trial_ended", "time": 4.0, "step": 30, "trial": 1, "adopted": [], "reason": "no", "steps": 20}
    spans = folded([MODEL, moved(1.1, 1, "GERMINATED"), begun, moved(3.0, 1, "EVALUATING"), filed(3.9, 1), ended])
    check_tree(spans)
    (twin,) = (one for one in spans if one.kind == "arm")
    assert (twin.begin, twin.end, twin.parent) == (3.0, 4.0, span_id(RUN, "trial", 1))


def test_what_happened_is_kept_within_bounds():
    notes = [{"event": "note", "time": 1.0 + number, "text": str(number)} for number in range(1000)]
    (run,) = folded([MODEL, *notes])
    assert [one.attributes["esper.text"] for one in run.moments] == [str(one) for one in range(1000)][-MOST_NOTES:]


def test_a_run_says_which_flags_are_on():
    flags = {"esper_off": {"is_on": False, "reason": "x"}, "message_bus": {"is_on": True, "reason": "y"}}
    (run,) = folded([MODEL, {"event": "flags", "time": 0.1, "step": 0, "model_id": "m", "flags": flags}])
    assert (run.attributes["esper.flag.esper_off"], run.attributes["esper.flag.message_bus"]) == (False, True)
    assert run.attributes["esper.model_id"] == "m"


def test_nothing_was_begun_where_nothing_was_heard():
    assert folded([]) == []
    assert folded([epoch(1.0, 1)]) == []


def test_ids_are_those_of_traces():
    """W3C Trace Context, section 3.2.2."""
    assert len(trace_id(RUN)) == 32
    assert len(span_id(RUN, "run")) == 16
    assert trace_id(RUN) != trace_id("digits-2")
