"""A run directory is read however damaged it is, and its damage is named."""

import json

import pytest

from esper.contracts.errors import ConfigError
from esper.observability.compare import compare
from esper.observability.record import read
from esper.observability.rows import text
from esper.observability.shapes import NEEDED
from esper.observability.story import story
from tests.observability import directories


def test_a_whole_run_has_no_faults(tmp_path):
    record = read(directories.finished(tmp_path))
    assert record.faults == []
    assert record.status == "finished"
    assert record.config["growth"]["gate_z"] == 2.33
    assert [number for number, _ in record.audit] == list(range(1, 11))
    assert [event["epoch"] for _, event in record.epochs] == [1, 2, 3, 4]
    assert [number for number, _ in record.of("round_begun", "round_ended")] == [4, 8]


def test_an_unfinished_run_has_no_faults(tmp_path):
    progress = {"seconds": 1.5, "rows": {}}
    record = read(directories.write(tmp_path, audit=[directories.model()], progress=progress))
    assert (record.faults, record.status, record.progress) == ([], "unfinished", progress)


@pytest.mark.parametrize(
    ("audit", "result", "status"),
    [
        (directories.log(), directories.result([]), "finished"),
        (directories.log(), None, "trained"),
        (directories.log(), {}, "damaged"),
        (directories.log()[:-1], None, "unfinished"),
    ],
)
def test_how_far_a_run_came(tmp_path, audit, result, status):
    assert read(directories.write(tmp_path, audit=audit, result=result)).status == status


@pytest.mark.parametrize(
    ("fields", "is_fault"), [({}, False), ({"progress": {"seconds": 1, "rows": {}}}, True), ({"result": {}}, True)]
)
def test_only_a_session_of_ones_own_may_lack_a_configuration(tmp_path, fields, is_fault):
    record = read(directories.write(tmp_path, config=None, audit=directories.log(), **fields))
    assert bool(record.faults_of("config.yaml")) == is_fault
    assert record.is_of_own_loop != is_fault


def test_a_run_whose_logs_are_lost_has_begun(tmp_path):
    (directories.write(tmp_path) / "checkpoints").mkdir()
    for name in ("audit.jsonl", "metrics.jsonl"):
        (tmp_path / name).unlink()
    record = read(tmp_path)
    assert record.has_begun
    assert len(record.faults) == 2


def test_telemetry_is_apart_from_epochs(tmp_path):
    sensed = {"chunk_variance": [0.1, None], "awake": {"1": 6}}
    line = {"event": "telemetry", "time": 1.0, "epoch": 1, "step": 25, "places": {"0": sensed}}
    record = read(directories.finished(tmp_path, metrics=[directories.epoch(1), line]))
    assert [number for number, _ in record.epochs] == [1]
    assert record.telemetry == [(2, line)]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("config.yaml", "config.yaml is missing: the options of the run are not known."),
        ("audit.jsonl", "audit.jsonl is missing: what happened to seeds is not known."),
        ("metrics.jsonl", "metrics.jsonl is missing: there are no learning curves and no telemetry."),
    ],
)
def test_a_missing_file_is_named_with_what_it_means(tmp_path, name, says):
    (directories.finished(tmp_path) / name).unlink()
    assert read(tmp_path).faults == [says]


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "{", '{"rows": {}}', '"\\ud800"', "\x00\x01", "[" * 100_000, '{"a": NaN}']
)
def test_a_result_that_is_none_is_a_fault(tmp_path, content):
    (directories.finished(tmp_path) / "result.json").write_text(content)
    record = read(tmp_path)
    assert record.result is None
    assert len(record.faults) == 1
    assert record.faults[0].startswith("result.json ")
    assert record.faults[0].endswith(": what the run ended with is not known.")


@pytest.mark.parametrize("field", ["task", "rows", "reasons", "lifecycles", "probe_flops"])
def test_a_result_names_what_it_lacks(tmp_path, field):
    result = json.loads((directories.finished(tmp_path) / "result.json").read_text())
    del result[field]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert read(tmp_path).faults == [f"result.json lacks {field!r}: what the run ended with is not known."]


def _broken(path, value):
    result = directories.result([directories.lifecycle(1)])
    *way, last = path
    inner = result
    for step in way:
        inner = inner[step]
    inner[last] = value
    return result


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows", "grown"), None),
        (("rows", "grown", "test_loss"), "0.1"),
        (("rows", "grown", "train_flops"), 0),
        (("rows", "grown", "parameters"), True),
        (("rows", "host_on"), {"parameters": 1}),
        (("lifecycles", 0, "born_step"), None),
        (("lifecycles", 0, "gates"), []),
        (("reasons",), {"static": 1}),
        (("gains",), {"host_on": {"loss": {"mean": "much"}}}),
        (("metric",), 3),
        (("probe_flops",), 10**400),
    ],
)
def test_a_result_with_a_wrong_type_in_it_is_a_fault(tmp_path, path, value):
    record = read(directories.finished(tmp_path, result=_broken(path, value)))
    assert record.faults == [f"result.json is damaged in {path[0]!r}: what the run ended with is not known."]


def test_a_result_whose_losses_are_not_finite_is_whole(tmp_path):
    undefined = {"mean": None, "low": None, "high": None}
    result = directories.result([], grown=directories.row(None), gains={"host_on": {"loss": undefined, "metric": None}})
    assert read(directories.finished(tmp_path, result=result)).faults == []


@pytest.mark.parametrize("content", ["a: [", "- 1", "3: 4", "growth: 5", "\x00", "", "growth: {1: 2}"])
def test_a_configuration_that_is_none_is_a_fault(tmp_path, content):
    (directories.finished(tmp_path) / "config.yaml").write_text(content)
    record = read(tmp_path)
    assert record.config is None
    assert [fault.split()[0] for fault in record.faults] == ["config.yaml"]


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"seconds": "1", "rows": {}}', '{"seconds": 1, "rows": {"host_on": 3}}']
)
def test_progress_that_is_damaged_is_a_fault(tmp_path, content):
    (directories.write(tmp_path) / "progress.json").write_text(content)
    record = read(tmp_path)
    assert record.progress == {}
    assert [fault.split()[0] for fault in record.faults] == ["progress.json"]


def test_a_line_that_was_cut_is_left_out_and_named(tmp_path):
    path = directories.finished(tmp_path) / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    record = read(tmp_path)
    assert record.faults == ["audit.jsonl ends in the middle of line 10, which was left out."]
    assert [number for number, _ in record.audit] == list(range(1, 10))


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"[1]",
        b"3",
        b'{"time": 1}',
        b'{"event": 7}',
        b'{"event": "note"}',
        b'{"event": "note", "text": NaN}',
        b'{"event": "note", "text": "\\ud800"}',
    ],
)
def test_a_damaged_line_is_left_out_and_named(tmp_path, line):
    path = directories.finished(tmp_path) / "audit.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:], b""]))
    record = read(tmp_path)
    assert record.faults == ["audit.jsonl line 4 is damaged and was left out: what it told is missing here."]
    assert [number for number, _ in record.audit] == [1, 2, 3, *range(5, 12)]


def test_many_damaged_lines_are_told_in_one_sentence(tmp_path):
    path = directories.finished(tmp_path) / "metrics.jsonl"
    path.write_text("garbage\n" * 900 + path.read_text())
    assert read(tmp_path).faults == [
        "metrics.jsonl lines 1, 2, 3, 4, 5 and 895 more are damaged and were left out: what they told is missing here."
    ]


def test_a_log_of_garbage_says_what_is_unknown(tmp_path):
    (directories.finished(tmp_path) / "audit.jsonl").write_bytes(bytes(range(256)) * 50)
    record = read(tmp_path)
    assert record.audit == []
    assert record.faults[-1] == "audit.jsonl holds nothing that can be read: what happened to seeds is not known."


def test_an_empty_log_of_a_finished_run_is_a_fault(tmp_path):
    (directories.finished(tmp_path) / "metrics.jsonl").write_text("")
    assert len(read(tmp_path).faults) == 1


WHOLE = {event["event"]: event for event in [*directories.log(), directories.epoch(1)]}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_line_that_lacks_a_field_of_its_kind_is_left_out(tmp_path, kind):
    name = "metrics" if kind == "epoch" else "audit"
    for field in NEEDED[kind]:
        event = {key: value for key, value in WHOLE[kind].items() if key != field}
        record = read(directories.write(tmp_path / field, **{name: [event, WHOLE[kind]]}))
        assert [number for number, _ in [*record.audit, *record.epochs]] == [2], field
        assert record.faults == [f"{name}.jsonl line 1 is damaged and was left out: what it told is missing here."]


@pytest.mark.parametrize(
    "places",
    [3, {"0": []}, {"0": {"chunk_variance": 3}}, {"0": {"chunk_variance": ["x"]}}, {"0": {"awake": {"one": 1}}}],
)
def test_telemetry_of_a_wrong_shape_is_left_out(tmp_path, places):
    line = {"event": "telemetry", "time": 1.0, "epoch": 1, "step": 25, "places": places}
    record = read(directories.write(tmp_path, metrics=[line, directories.epoch(1)]))
    assert record.telemetry == []
    assert len(record.faults) == 1


ODD = (None, True, -1, 1e308, "x", "", [], [None], {}, {"0": None})


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_whatever_a_field_holds_the_run_can_be_told(tmp_path, odd):
    """One field of every line, or of the result, is replaced; what comes through must be usable."""
    result = directories.result([directories.lifecycle(1, outcome="FOSSILIZED")], host_on=directories.row())
    result |= {"gains": {"host_on": directories.gain((1, 0, 2), None), "static": None}}
    events = [*directories.log(), directories.epoch(1), directories.epoch(2)]
    audit = [event | {field: odd} for event in directories.log() for field in event]
    metrics = [event | {field: odd} for event in events[-2:] for field in event]
    directories.write(tmp_path / "log", audit=audit, metrics=metrics, config={"epochs": odd, "growth": {"gate_z": odd}})
    directories.finished(tmp_path / "whole")
    for number, changed in enumerate(_changed(result, odd)):
        directories.finished(tmp_path / f"result{number}", result=changed)
    records = [read(directory) for directory in sorted(tmp_path.iterdir())]
    for record in records:
        assert story(record).headline
        assert record.result is None or text(record.result)
    assert compare(records).rows


def _changed(value, odd):
    """Copies of a nested value in each of which one place holds something odd."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        for changed in (odd, *_changed(inner, odd)):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = changed
            yield copy


def test_events_of_unknown_kinds_are_let_through(tmp_path):
    record = read(directories.write(tmp_path, audit=[{"event": "new"}]))
    assert (len(record.audit), record.faults) == (1, [])


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    path = directories.finished(tmp_path) / "audit.jsonl"
    path.unlink()
    path.mkdir()
    assert read(tmp_path).faults == [
        "audit.jsonl cannot be read (Is a directory): what happened to seeds is not known."
    ]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds nothing of a run"):
        read(tmp_path)
    for name in ("nowhere", "x" * 300):
        with pytest.raises(ConfigError, match=f"There is no directory .*{name}. Name the directory of a run"):
            read(tmp_path / name)


def test_a_file_is_no_run(tmp_path):
    path = directories.finished(tmp_path) / "result.json"
    with pytest.raises(ConfigError, match=f"is a file. Name the directory of a run instead, for example {tmp_path}"):
        read(path)
