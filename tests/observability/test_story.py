"""The story of a run is true, whatever became of it, and every number in it names its source."""

import json
import re
from html.parser import HTMLParser

import pytest

from esper.observability.record import read
from esper.observability.story import story
from tests.observability import directories
from tests.observability.directories import gain, lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
HOST, STATIC = row(0.30, 0.90), row(0.20, 0.94, 1290)
BETTER, WORSE, UNCLEAR = (0.05, 0.02, 0.08), (-0.05, -0.08, -0.02), (0.01, -0.02, 0.04)


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
        "Round 1, from step 25, had 2 candidates (bottleneck_mlp on the whole model and bottleneck_mlp on 0:2)" in told
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


def test_candidates_that_were_not_tried_are_told(tmp_path):
    """After two that were no better; not those that somebody took back."""
    lost = directories.arm_ended(1, z=-4.0)
    left_out = directories.transition(2, "CANCELLED", 20, source="GERMINATED")
    for reason, is_told in (
        ("not tried: those before it were no better than the twin", True),
        ("asked for", False),
    ):
        told = _refused(tmp_path, lost, left_out | {"reason": reason})
        assert ("Those that were tried were no better than it, so that 1 was not tried." in told) == is_told


def test_a_candidate_refused_for_its_accuracy_is_told_so(tmp_path):
    assert "(z = +4.0), but its accuracy was 2.0 points lower." in _refused(tmp_path, directories.arm_ended(1, z=4.0))


def test_a_candidate_refused_as_an_offset_is_told_so(tmp_path):
    arm = directories.arm_ended(1, z=4.0) | {"metric_gain": 0.02, "variation": 0.01}
    told = _refused(tmp_path, arm | {"verdict": "variation is 0.01, below 0.05"})
    assert "(z = +4.0), but what it added was nearly the same for every input, as a bias would be." in told


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
    fields = {"audit": [directories.model()], "config": directories.CONFIG | config}
    directory = directories.finished(tmp_path, result=result([]), **fields)
    assert says in _told(directory)
    assert "No growth was tried" in _told(directory)


def test_a_round_without_a_finite_loss_says_so(tmp_path):
    nothing = dict.fromkeys(("gate_loss", "twin_gate_loss", "twin_z", "metric_gain"))
    arms = [directories.arm_ended(number, **nothing) for number in (1, 2)]
    assert "the run without it. No loss on the gate samples was finite." in _refused(tmp_path, *arms)
    arms = [one | {"twin_gate_loss": 1.0} for one in arms]
    assert "the run without it. The loss of no candidate was finite." in _refused(tmp_path, *arms)


def test_a_round_of_one_candidate_is_told_in_the_singular(tmp_path):
    begun = directories.round_begun(directories.candidate(1))
    audit = [begun, directories.arm_ended(1), directories.round_ended(None, "no candidate beat the twin")]
    told = _told(directories.finished(tmp_path, audit=audit, result=result([])))
    assert "had 1 candidate (bottleneck_mlp on the whole model), and it did not beat its twin, the run with" in told
    assert "It had a loss of 1.0600 on the gate samples against 1.0000 (z = -3.0; it takes at least 2.33)." in told


def test_one_parameter_is_told_in_the_singular(tmp_path):
    fossil = lifecycle(1, outcome="FOSSILIZED", reason="gate passed", parameters=1)
    assert "bottleneck_mlp on the whole model has 1 parameter: it" in _told(
        directories.finished(tmp_path, result=result([fossil]))
    )


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
        ("emergency", {"response": "lower_lr"}, "the run went back, with lower learning rates from then on."),
        ("emergency", {"response": "stop"}, "the run stopped."),
        ("emergency", {"response": "cull", "layer_id": "0"}, "; the graft on 0 was at fault and taken out."),
        ("rollback", {}, "the run went back to its state after step 25 (asked for); what was adopted since is gone."),
        ("rollback", {"reason": "emergency: x", "lifecycles": []}, "the run went back to its state after step 25."),
        ("rollback", {"to_step": 50, "lifecycles": []}, "its state after step 50 (asked for); nothing was lost."),
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
    assert "had 1 candidate (bottleneck_mlp on the whole model); it is under way." in told
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
    assert "If the session is gone, go on by loading its newest checkpoint: session.load(" in _told(directory)


@pytest.mark.parametrize("has_ended", [True, False])
def test_flops_that_were_not_counted_are_no_cost_of_nothing(tmp_path, has_ended):
    none = dict.fromkeys(("run_flops", "arm_flops", "judging_flops"), 0)
    log = directories.log()[: None if has_ended else -1]
    log[-1] |= {"train_flops": 0} if has_ended else {}
    directory = directories.write(tmp_path, audit=log, metrics=[directories.epoch(1, **none)], config=None)
    assert "FLOPs were not counted." in _told(directory)
    assert "kFLOPs" not in _told(directory)


def test_a_session_that_ended_is_trained_and_lacks_nothing(tmp_path):
    record = read(_unfinished(tmp_path, directories.log(), config=None))
    told = "\n".join(map(str, [story(record).headline, *story(record).paragraphs]))
    assert (record.status, record.faults) == ("trained", [])
    assert told.startswith("The network is trained, at step 100.\n")
    assert "Training took 0.0 kFLOPs, " in told  # 9 of them, by the line that ends the log
    assert "so far" not in told
    assert "end of the run" not in told


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "All 100 steps are done; call session.finish().\nIf the session is gone, go on by loading its newest"),
        (directories.CONFIG, "All 100 steps are done, but the run is not finished.\nGo on with: esper run --resume"),
    ],
)
def test_all_steps_are_done_but_the_run_is_not_finished(tmp_path, config, says):
    assert _told(_unfinished(tmp_path, [directories.model()], 4, config=config)).startswith(says)
    assert "steps are done" not in _told(_unfinished(tmp_path, [directories.model()], 3, config=config))


@pytest.mark.parametrize("has_logs", [True, False])
def test_a_run_that_has_not_begun(tmp_path, has_logs):
    directory = directories.write(tmp_path)
    if not has_logs:
        (directory / "audit.jsonl").unlink()
        (directory / "metrics.jsonl").unlink()
    assert read(directory).faults == []
    assert _told(directory).startswith("The run has not begun yet.\nGo on with: esper run --resume last")


def test_a_damaged_result_is_not_taken_for_an_unfinished_run(tmp_path):
    (directories.finished(tmp_path) / "result.json").write_text("{")
    told = _told(tmp_path)
    assert told.startswith("The run has ended, but its result cannot be read")
    assert "not finished" not in told
    assert "so far" not in told
    assert "end of the run" not in told
    (tmp_path / "audit.jsonl").write_text("x\n")
    assert "Nothing was tried" not in _told(tmp_path)  # for the log is lost
    assert "To the last boundary that is known, training took 4.0 MFLOPs, " in _told(tmp_path)


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


def test_those_that_were_not_tried_after_the_first_that_passed_are_counted(tmp_path):
    first, reason = directories.candidate(1), "not tried: one before it beat the twin"
    audit = [
        directories.round_begun(first, directories.candidate(2)),
        directories.arm_ended(1, passed=True, z=9.5, gate_loss=0.8, metric_gain=0.1),
        directories.transition(2, "CANCELLED", 20, source="GERMINATED") | {"reason": reason},
        directories.round_ended(first, "beat the twin"),
    ]
    reports = [lifecycle(1), lifecycle(2) | {"outcome": "CANCELLED", "reason": reason}]
    told = _told(directories.finished(tmp_path, audit=audit, result=result(reports)))
    assert "beat the twin and was adopted; 1 was not tried." in told
    assert "taken back" not in told
