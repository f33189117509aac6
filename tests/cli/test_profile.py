"""``esper profile``: a table and a trace of a real run, and methods that are what they were."""

import json

import pytest

from esper.cli.main import main
from esper.evaluation.ranges import NAMES, Cost, Span, costs, named


def test_a_table_and_a_trace_of_the_digits_run(tmp_path, capsys):
    trace = tmp_path / "trace.json"
    assert main(["profile", "--steps", "8", "--trace", str(trace)]) == 0
    out = capsys.readouterr().out
    for said in ("bare ", "dormant ", "with a graft ", "esper: grafts forward", "esper: seeds look at outputs"):
        assert said in out
    dormant, _, grown = out.partition("with a graft: in a profiled step")
    assert "esper: grafts step" not in dormant
    assert "esper: grafts step" in grown
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("ph") == "X"]
    assert names.count("esper: step") == 2 * 8
    assert names.count("phase: dormant") == 1


def test_methods_are_what_they_were():
    before = {name: vars(owner)[key] for name, (owner, key) in NAMES.items()}
    with named():
        assert all(vars(owner)[key] is not before[name] for name, (owner, key) in NAMES.items())
    assert all(vars(owner)[key] is before[name] for name, (owner, key) in NAMES.items())


def test_what_a_range_takes_is_without_the_ranges_within():
    spans = [
        Span("step", 1, 0, 100, 9),
        Span("places", 1, 10, 60, 5),
        Span("look", 1, 20, 30),
        Span("look", 1, 40, 45),
        Span("told", 1, 60, 90),
        Span("look", 2, 0, 7),  # of another thread: in nobody
    ]
    assert costs(spans) == [
        Cost("places", 1, 35, 5),
        Cost("told", 1, 30, 0),
        Cost("look", 3, 22, 0),
        Cost("step", 1, 20, 4),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--steps", "0"], "--steps must be at least 1"),
        (["--steps", "few"], "invalid int value"),
        (["--device", "cuda"], "no device 'cuda' here"),
        (["--output", "x"], "no option '--output'"),
        (["--max-rounds", "3"], "no option '--max-rounds'"),
        (["--trace", "nowhere/trace.json"], "no directory nowhere"),
        (["--trace", "."], "is a directory"),
        (["--setps", "3"], "Did you mean '--steps'"),
        (["--blueprints", "mini_attention", "--layers", "0"], "No blueprint fits"),
    ],
)
def test_what_cannot_be_is_refused(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["profile", *line]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
