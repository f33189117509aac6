"""The story of a run is true, whatever became of it, and every number in it names its source."""

import json
import re
from html.parser import HTMLParser

import pytest

from esper.observability.record import read
from esper.observability.story import story, verdict
from tests.observability import directories
from tests.observability.directories import gain, lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
HOST, STATIC = row(0.30, 0.90), row(0.20, 0.94, 1290)
BETTER, WORSE, UNCLEAR = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


def _verdict(lifecycles=(FOSSIL,), grown=None, host_on=HOST, static=STATIC, **fields):
    return verdict(result(list(lifecycles), grown=grown, host_on=host_on, static=static, **fields))


@pytest.mark.parametrize(
    ("grown", "lifecycles", "says"),
    [
        (
            row(0.18, 0.95),
            [FOSSIL],
            "The network grew 1 part, and that paid: 5.0 points more accuracy than the host trained on.",
        ),
        (
            row(0.18, 0.95),
            [FOSSIL],
            "the network has 5.0 points more accuracy and 0.120 nats less test loss. Against a network",
        ),
        (
            row(0.18, 0.95),
            [FOSSIL],
            "of about this size from the start it has 1.0 points more accuracy and 0.020 nats less",
        ),
        (row(0.18, 0.95), [FOSSIL], "Trying took 25% of the training FLOPs."),
        (row(0.18, 0.95), [FOSSIL, FOSSIL, lifecycle(2)], "The network grew 2 parts, and"),
        (row(0.29, 0.90), [FOSSIL], ", and that paid: 0.010 nats less test loss than the host trained on."),
        (row(0.31, 0.89), [FOSSIL], ", but that did not pay: 1.0 points less accuracy than the host trained on."),
        (row(0.31, 0.89), [FOSSIL], "1.0 points less accuracy and 0.010 nats more test loss."),
        (row(0.30, 0.90), [FOSSIL], ", but that did not pay: it is no better than the host trained on."),
        (row(0.31, 0.91), [FOSSIL], ", but test loss and accuracy disagree about whether it paid."),
        (row(0.31, 0.88), [lifecycle(1)], "Nothing grew: no candidate proved its worth. Against the host trained on"),
        (row(0.31, 0.88), [lifecycle(1)], "at a learning rate searched for it, the network has 2.0 points less"),
        (row(0.31, 0.88), [], "No growth was tried. Against"),
        (row(None, 0.10), [lifecycle(1)], "its loss is not finite. Nothing can be compared; try a smaller --lr."),
        (row(0.31, 0.88), [lifecycle(1, outcome="CANCELLED")], "every candidate was taken back before it was judged"),
        (row(0.31, 0.88), [lifecycle(1, outcome="ROLLED_BACK")], "the run went back to before what had grown"),
    ],
)
def test_the_verdict_of_a_result_without_intervals(grown, lifecycles, says):
    assert says in _verdict(lifecycles, grown)


@pytest.mark.parametrize(
    ("loss", "metric", "says"),
    [
        (BETTER, BETTER, ", and that paid: 5.0 points more accuracy than the host trained on."),
        (
            BETTER,
            BETTER,
            "5.0 points more accuracy (2.0 to 8.0 more) and 0.050 nats less test loss (0.020 to 0.080 less).",
        ),
        (WORSE, WORSE, ", but that did not pay: 5.0 points less accuracy than the host trained on."),
        (
            WORSE,
            WORSE,
            "5.0 points less accuracy (2.0 to 8.0 less) and 0.050 nats more test loss (0.020 to 0.080 more).",
        ),
        (UNCLEAR, UNCLEAR, ", but these test samples cannot tell whether that paid."),
        (
            UNCLEAR,
            UNCLEAR,
            "1.0 points more accuracy (2.0 less to 4.0 more) and 0.010 nats less test loss (0.020 more to",
        ),
        (UNCLEAR, UNCLEAR, "0.040 less): too small a difference for these test samples to tell."),
        (BETTER, UNCLEAR, ", and that paid: 0.050 nats less test loss than the host trained on."),
        (BETTER, UNCLEAR, "; the difference in accuracy is too small for these test samples to tell."),
        (UNCLEAR, BETTER, ", and that paid: 5.0 points more accuracy than the host trained on."),
        (UNCLEAR, BETTER, "; the difference in test loss is too small for these test samples to tell."),
        (WORSE, UNCLEAR, ", but that did not pay: 0.050 nats more test loss than the host trained on."),
        (BETTER, WORSE, ", but test loss and accuracy disagree about whether it paid."),
        (BETTER, (0.0, 0.0, 0.0), ", and that paid: 0.050 nats less"),
        (UNCLEAR, None, ", but these test samples cannot tell whether that paid."),
    ],
)
def test_the_verdict_goes_by_the_intervals(loss, metric, says):
    fields = {} if metric else {"metric": None}
    grown, host_on = (row(0.18, 0.95), HOST) if metric else (row(0.18, None), row(0.30, None))
    said = _verdict([FOSSIL], grown, host_on, None, gains={"host_on": gain(loss, metric), "static": None}, **fields)
    assert says in said
    assert metric or "accuracy" not in said


def test_a_refusal_within_the_interval_is_no_difference():
    gains = {"host_on": gain(UNCLEAR, UNCLEAR), "static": None}
    assert "too small a difference for these test samples to tell" in _verdict([lifecycle(1)], gains=gains)
    gains = {"host_on": gain(WORSE, WORSE), "static": None}
    assert "too small" not in _verdict([lifecycle(1)], gains=gains)


def test_intervals_that_are_not_defined_are_left_out():
    undefined = dict.fromkeys(("mean", "low", "high"))
    said = _verdict(gains={"host_on": {"loss": undefined, "metric": undefined, "units": 1}, "static": None})
    assert "5.0 points more accuracy and 0.120 nats less test loss" in said


@pytest.mark.parametrize(
    ("lifecycles", "says"),
    [
        ([FOSSIL], "The network grew 1 part; what that was worth was not measured. It was not compared with the host"),
        ([lifecycle(1)], "It was not compared with the host trained on: left out by --no-controls."),
    ],
)
def test_what_was_not_measured_is_said(lifecycles, says):
    assert says in _verdict(lifecycles, host_on=None, static=None)


def test_a_control_that_diverged_is_beaten():
    said = _verdict([FOSSIL], row(0.18, 0.95), row(None, 0.10))
    assert ", and that paid: the loss of the host trained on is not finite." in said
    assert "85.0 points more accuracy; the test loss of that control is not finite." in said
    assert "the test loss of that control is not finite" in _verdict([FOSSIL], row(0.18, 0.95), HOST, row(None, 0.10))
    assert "the test loss of that control is not finite" not in _verdict([FOSSIL], row(0.18, 0.95))


def _parts(directory):
    told = story(read(directory))
    return [told.headline, *told.paragraphs]


def _told(directory):
    return "\n".join(map(str, _parts(directory)))


def test_what_grew_is_told_with_its_steps_and_sizes(tmp_path):
    told = _told(directories.finished(tmp_path))
    assert (
        "bottleneck_mlp on the whole model has 610 parameters: it began at step 25, was adopted at step 50 and" in told
    )
    assert "became a fossil at step 75. The host had 682 parameters, the network now has 1,292." in told


def test_a_round_is_told_with_its_winner(tmp_path):
    told = _told(directories.finished(tmp_path))
    assert (
        "Round 1, from step 25, tried 2 candidates (bottleneck_mlp on the whole model and bottleneck_mlp on 0:2)"
        in told
    )
    assert ": bottleneck_mlp on the whole model beat the twin and was adopted." in told


def _refused(tmp_path, *arms, reason="no candidate beat the twin", reports=(), **fields):
    begun = directories.round_begun(directories.candidate(1), directories.candidate(2, "0:2"))
    audit = [begun, *arms, directories.round_ended(None, reason)]
    return _told(directories.finished(tmp_path, audit=audit, result=result(list(reports)), **fields))


def test_a_round_that_refused_all_tells_how_near_the_best_came(tmp_path):
    told = _refused(tmp_path, directories.arm_ended(1, z=-4.0), directories.arm_ended(2, z=1.5))
    assert "and none beat its twin, the run without it. The nearest was bottleneck_mlp on 0:2 with a loss of" in told
    assert "1.0600 on the gate samples against 1.0000 (z = +1.5; it takes at least 2.33)." in told


def test_a_candidate_refused_for_its_accuracy_is_told_so(tmp_path):
    assert "(z = +4.0), but its accuracy was 2.0 points lower." in _refused(tmp_path, directories.arm_ended(1, z=4.0))


def test_a_round_without_a_verdict_gives_its_reason(tmp_path):
    told = _refused(tmp_path, reason="another graft was removed during the round")
    assert ", but adopted none: another graft was removed during the round." in told


@pytest.mark.parametrize(
    ("outcome", "reason", "says"),
    [
        (
            "CULLED",
            "keep gate refused",
            "was taken out at step 75: it could not be shown that the run is worse without it.",
        ),
        ("CULLED", "timed_out", "was taken out at step 75: it stayed in one state for too long."),
        ("CANCELLED", "the run was finished", "was taken back at step 75: the run was over before it could be judged."),
        (
            "ROLLED_BACK",
            "emergency: the held-out loss rose",
            "was lost in a rollback at step 75: emergency: the held-out",
        ),
        ("CULLED", "something new", "was taken out at step 75: something new."),
    ],
)
def test_why_a_graft_did_not_stay_is_told(tmp_path, outcome, reason, says):
    assert says in _refused(tmp_path, reports=[lifecycle(1, outcome=outcome, reason=reason)])


def test_a_lost_comparison_is_told_once(tmp_path):
    assert "taken out" not in _refused(tmp_path, reports=[lifecycle(1), lifecycle(2, reason="lost to its twin")])


def test_commands_that_were_not_carried_out_are_counted_by_reason(tmp_path):
    asked = {"time": 1.0, "step": 25, "arm": None, "target": "GERMINATED", "layer_id": "", "seed_id": "all"}
    said = [("veto", "tamiyo", "too large")] * 2 + [
        ("refused", "user", "no place"),
        ("refused", "session", "gate shut"),
    ]
    audit = [asked | {"event": event, "who": who, "reason": reason} for event, who, reason in said]
    told = _told(directories.finished(tmp_path, audit=audit, result=result([])))
    assert "2 commands were vetoed: too large. 1 command was refused: no place." in told.replace("\n", " ")
    assert "gate shut" not in told
    assert "Nothing was tried: every candidate was vetoed or refused." in told


def test_a_refused_candidate_was_asked_for(tmp_path):
    asked = {"event": "refused", "time": 1.0, "step": 25, "arm": None, "target": "GERMINATED", "who": "user"}
    told = _told(directories.finished(tmp_path, audit=[asked | {"reason": "embargo"}], result=result([])))
    assert "the controller asked for no candidate" not in told


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"policy": "never"}, "Nothing was tried: the policy is never."),
        ({"growth": {"max_rounds": 0}}, "Nothing was tried: max_rounds allows no round."),
        ({}, "Nothing was tried: the controller asked for no candidate while growth was allowed."),
    ],
)
def test_why_nothing_was_tried(tmp_path, config, says):
    directory = directories.finished(tmp_path, audit=[], config=directories.CONFIG | config, result=result([]))
    assert says in _told(directory)
    assert "No growth was tried" in _told(directory)


def test_live_trials_are_told(tmp_path):
    begun = {"event": "trial_begun", "time": 1.0, "step": 25, "trial": 1, "candidates": [directories.candidate(1, "0")]}
    ended = {"event": "trial_ended", "time": 2.0, "step": 50, "trial": 1, "adopted": [], "reason": "lost"}
    told = _told(directories.finished(tmp_path, audit=[begun, ended]))
    assert (
        "Live trial 1, from step 25, grew 1 candidate (bottleneck_mlp on 0) in the run itself; nothing stayed: lost."
        in told
    )
    kept = ended | {"adopted": begun["candidates"], "reason": "beat the twin"}
    assert "; bottleneck_mlp on 0 stayed: beat the twin." in _told(directories.finished(tmp_path, audit=[begun, kept]))


TROUBLE = {
    "emergency": {"reason": "the held-out loss rose", "response": "rollback", "layer_id": None},
    "rollback": {"to_step": 25, "reason": "asked for", "who": "user", "lifecycles": [1]},
    "fault": {"layer_id": "0:2", "lifecycles": [1]},
    "recovery": {"recovered": False},
}


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("emergency", {}, "At step 50 there was an emergency (the held-out loss rose); the run went back."),
        ("emergency", {"response": "cull", "layer_id": "0"}, "; the graft on 0 was at fault and taken out."),
        ("rollback", {}, "the run went back to its state after step 25 (asked for); what was adopted since is gone."),
        ("rollback", {"reason": "emergency: x", "lifecycles": []}, "the run went back to its state after step 25."),
        ("fault", {}, "At step 50 a graft on 0:2 gave values that are not finite."),
        ("fault", {"lifecycles": []}, "a fossil on 0:2 gave"),
        ("recovery", {}, "had not recovered from the removal of a graft and went back to before that graft."),
        ("recovery", {"recovered": True}, "the run had recovered from the removal of a graft."),
    ],
)
def test_trouble_is_told(tmp_path, kind, fields, says):
    event = {"event": kind, "time": 1.0, "step": 50, **TROUBLE[kind], **fields}
    assert says in _told(directories.finished(tmp_path, audit=[*directories.log(), event]))
    assert says not in _told(directories.finished(tmp_path / "calm"))


def test_what_growth_cost_is_told(tmp_path):
    told = _told(directories.finished(tmp_path))
    assert "Training took 4.0 MFLOPs and 1 min 20 s; 1.0 MFLOPs of that (25%) went into arms and judging." in told


def test_what_was_not_trained_or_measured_is_told(tmp_path):
    told = _told(directories.finished(tmp_path, result=result([], metric=None)))
    assert "The controls host_on and static were not trained: left out by --no-controls." in told
    assert "The task has no metric beside its loss." in told
    assert "What the seeds sensed was not recorded." in told


def _unfinished(tmp_path, audit=(), epochs=2, **fields):
    metrics = [directories.epoch(number + 1) for number in range(epochs)]
    return directories.write(tmp_path, audit=list(audit), metrics=metrics, **fields)


def test_an_unfinished_run_tells_how_far_it_came_and_how_to_go_on(tmp_path):
    directory = _unfinished(tmp_path / "a run", [directories.model()])
    first, second, *_ = map(str, _parts(directory))
    assert first == "The run is not finished: its log reaches step 50 of 100 (50%)."
    assert (
        second == f"It is still running, or was interrupted. Go on with: esper run --resume last --output '{directory}'"
    )
    assert "Nothing has been tried so far." in _told(directory)


def test_without_a_model_line_epochs_tell_how_far_it_came(tmp_path):
    assert "reaches step 50, epoch 2 of 4." in _told(_unfinished(tmp_path))


def test_a_run_that_has_just_begun(tmp_path):
    assert "it has not come to its first boundary" in _told(_unfinished(tmp_path, [directories.model()], 0))


def test_an_unfinished_run_tells_what_is_under_way(tmp_path):
    audit = [directories.round_begun(directories.candidate(1)), directories.transition(7, "FINE_TUNING", 50)]
    told = _told(_unfinished(tmp_path, audit))
    assert "tried 1 candidate (bottleneck_mlp on the whole model); it is under way." in told
    assert "A graft on the whole model was adopted at step 50 and has yet to prove that it may stay." in told
    (tmp_path / "audit.jsonl").write_text((tmp_path / "audit.jsonl").read_text()[:-9])
    assert "; how it ended is not in the log." in _told(tmp_path)  # for the log is damaged
    over = directories.transition(7, "CULLED", 75, source="FINE_TUNING")
    assert "has yet to prove" not in _told(_unfinished(tmp_path, [*audit, over]))


def test_controls_that_were_interrupted(tmp_path):
    progress = {"seconds": 1.0, "rows": {"host_on": HOST}}
    told = _told(_unfinished(tmp_path, directories.log()[-1:], progress=progress))
    assert told.startswith("The network is trained, at step 100; what growth was worth is not measured yet.")
    assert "The control host_on is trained. Go on with: esper run" in told


def test_a_run_of_the_users_own_loop(tmp_path):
    directory = _unfinished(tmp_path, directories.log()[-1:], config=None)
    assert "What growth was worth is not known: controls are trained by esper run only." in _told(directory)
    directory = _unfinished(tmp_path, [], config=None)
    assert "Go on by loading its newest checkpoint: session.load(" in _told(directory)


def test_a_damaged_result_is_not_taken_for_an_unfinished_run(tmp_path):
    (directories.finished(tmp_path) / "result.json").write_text("{")
    told = _told(tmp_path)
    assert told.startswith("The run has ended, but its result cannot be read")
    assert "not finished" not in told


def test_the_first_paragraph_is_one_short_sentence(tmp_path):
    for directory in _all_kinds(tmp_path):
        first = str(story(read(directory)).headline)
        assert first.endswith(".")
        assert ". " not in first
        assert len(first.split()) <= 18


class _Numbers(HTMLParser):
    """The cited numbers of a page, and all text outside of them and of code."""

    def __init__(self):
        super().__init__()
        self.cited, self.outside, self._inside = [], "", []

    def handle_starttag(self, tag, attributes):
        self._inside.append(tag)
        if tag == "data":
            values = dict(attributes)
            self.cited.append((json.loads(values["value"]), json.loads(values["data-from"])))

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, text):
        if not self._inside:
            self.outside += text


def _numbers(directory):
    parser = _Numbers()
    parser.feed("\n".join(part.__html__() for part in _parts(directory)))
    return parser


def _all_kinds(root):
    both = {"host_on": gain(BETTER, UNCLEAR), "static": gain(WORSE, UNCLEAR)}
    trouble = [{"event": kind, "time": 1.0, "step": 50, **fields} for kind, fields in TROUBLE.items()]
    compared = result([FOSSIL, lifecycle(2)], host_on=HOST, static=STATIC)
    yield directories.finished(root / "intervals", result=compared | {"gains": both})
    yield directories.finished(root / "plain", result=compared, audit=[*directories.log(), *trouble])
    yield directories.finished(root / "no controls")
    yield directories.finished(root / "refused", result=result([lifecycle(1), lifecycle(2, reason="timed_out")]))
    yield _unfinished(root / "unfinished", directories.log()[:5])
    yield _unfinished(root / "without model", directories.log()[1:5])
    yield _unfinished(root / "controls", directories.log(), progress={"seconds": 1.0, "rows": {"host_on": HOST}})


def test_every_number_is_what_its_sources_say(tmp_path):
    for directory in _all_kinds(tmp_path):
        numbers = _numbers(directory)
        assert len(numbers.cited) >= 3
        for value, (how, *sources) in numbers.cited:
            assert directories.evaluated(directory, how, sources) == pytest.approx(value, rel=1e-12, abs=1e-12), sources


def test_no_number_stands_outside_of_its_element(tmp_path):
    for directory in _all_kinds(tmp_path):
        assert not re.search(r"\d", _numbers(directory).outside)


def test_a_number_whose_source_says_otherwise_is_caught(tmp_path):
    """The check above is one: it fails for a file that was changed after the story was told."""
    directory = directories.finished(tmp_path)
    numbers = _numbers(directory)
    changed = result([FOSSIL, lifecycle(2, born_step=26)], grown=row(0.5, 0.5, 9, 7))
    (directory / "result.json").write_text(json.dumps(changed))
    wrong = [
        sources
        for value, (how, *sources) in numbers.cited
        if directories.evaluated(directory, how, sources) != pytest.approx(value)
    ]
    assert ["result.json#/rows/grown/train_flops"] in wrong
    assert ["result.json#/probe_flops", "result.json#/rows/grown/train_flops"] in wrong


def test_text_from_the_log_cannot_become_html(tmp_path):
    ended = directories.round_ended(None, "<script>alert(1)</script>")
    audit = [directories.round_begun(directories.candidate(1)), ended]
    html = "".join(part.__html__() for part in _parts(directories.finished(tmp_path, audit=audit)))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
