"""What a real run shows: in a terminal, in a pipe, for machines, and as one process of several."""

import json
import signal
import sys
from datetime import datetime

import pytest
import yaml

from esper.cli.console.plain import PlainLines
from esper.cli.console.presentation import presentation
from esper.cli.main import main
from esper.cli.options import Options
from esper.runtime.session import Session
from tests.cli.terminal import HIDE, SHOW, UP, in_terminal

COLOURS = ("\x1b[36m", "\x1b[32m")
STOPPED_RUN = """
import signal, sys
from esper.cli.main import main
from esper.runtime.session import Session

how, *line = sys.argv[1:]
step = Session.step

def stop_in_a_step(session, batch):
    if session.step_count == 16 and how.startswith("SIG"):
        signal.raise_signal(getattr(signal, how))
    if session.step_count == 16 and how == "error":
        raise RuntimeError("the training step is broken")
    return step(session, batch)

Session.step = stop_in_a_step
sys.exit(main(line))
"""


@pytest.fixture
def line(grows, tmp_path) -> list[str]:
    return ["run", "--config", grows, "--no-controls", "--output", str(tmp_path / "run")]


@pytest.fixture
def short(line) -> list[str]:
    """Four epochs, and nothing grows."""
    return [*line, "--epochs", "4", "--max-rounds", "0"]


def test_a_terminal_shows_the_run_live(grows, tmp_path):
    shown = in_terminal("-m", "esper", "run", "--config", grows, "--output", str(tmp_path / "run"))
    assert shown.code == 0
    assert shown.written.count(UP) > 1, "the display was drawn again and again"
    assert shown.written.rfind(SHOW) > shown.written.rfind(HIDE) > 0
    assert all(colour in shown.written for colour in COLOURS)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for part in (
        "100%  trained",
        "epoch 12   step 120 of 120",
        "round 1        ends; adopted a graft on",
        "beats the twin",
        "the growth window is open",
        "FOSSILIZED: gate passed",
        "static         ━━━━━━━━━━━━━━━━━━━━━━━━  6 of 6 whole runs",
        f"{result['rows']['grown']['parameters']:,}",
        "report.html",
    ):
        assert part in shown.end
    assert shown.end.index("6 of 6 whole runs") < shown.end.index("report.html"), "the last words stand below"


@pytest.mark.long
def test_a_narrow_and_short_terminal_is_enough(line, tmp_path):
    shown = in_terminal("-m", "esper", *line, columns=60, rows=12)
    assert shown.code == 0
    assert "100%  trained" in shown.end
    display, _ = shown.end.split("\n\n", 1)
    assert "round 1        ends; adopted" in display
    assert len(display.splitlines()) <= 12
    assert all(len(row) <= 60 for row in shown.end.splitlines() if str(tmp_path) not in row)


@pytest.mark.long
def test_without_colour_the_display_has_none(short):
    shown = in_terminal("-m", "esper", *short, NO_COLOR="1")
    assert UP in shown.written
    assert not any(colour in shown.written for colour in COLOURS)


def test_a_terminal_that_can_do_no_more_gets_plain_lines(short):
    shown = in_terminal("-m", "esper", *short, TERM="dumb")
    assert shown.code == 0
    assert "\x1b" not in shown.written
    assert "epoch   4/4  train loss" in shown.written


def test_what_is_no_terminal_gets_plain_lines(short, capsys):
    assert main(short) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "epoch   4/4  train loss" in out


def test_an_interrupted_run_leaves_the_terminal_clean_and_goes_on_where_it_was(short, tmp_path):
    shown = in_terminal("-c", STOPPED_RUN, "SIGINT", *short)
    assert shown.code == 130
    assert shown.written.rfind(SHOW) > shown.written.rfind(HIDE) > 0
    assert "stopped" in shown.end
    last = shown.written[shown.written.rfind(SHOW) :]
    again = f"esper run --resume last --output {tmp_path / 'run'}"
    assert f"interrupted  go on from the last checkpoint with: {again}" in last
    assert "Traceback" not in shown.written
    shown = in_terminal("-m", "esper", "run", "--resume", "last", "--output", str(tmp_path / "run"))
    assert "resumed      after 17 steps" in shown.written
    (curve,) = (row for row in shown.end.splitlines() if row.startswith("train loss"))
    assert len(curve.split()[-1]) == 4, "one block per epoch, of both parts"


def test_an_error_leaves_the_terminal_clean_and_its_trace_below(line):
    shown = in_terminal("-c", STOPPED_RUN, "error", *line)
    assert shown.code == 1
    last = shown.written[shown.written.rfind(SHOW) :]
    assert HIDE not in last
    assert "RuntimeError: the training step is broken" in last


def test_a_log_for_machines_has_the_numbers_of_the_run(grows, tmp_path, capsys):
    directory = tmp_path / "run"
    assert main(["run", "--config", grows, "--output", str(directory), "--log-format", "json"]) == 0
    out, err = capsys.readouterr()
    told = [json.loads(row) for row in out.splitlines()]
    assert err == ""
    assert all(list(one)[:3] == ["event", "level", "timestamp"] for one in told)
    begun, *_, result = told
    assert (begun["event"], begun["task"], begun["training"], begun["directory"]) == (
        *("run_begun", "digits", 800),
        str(directory),
    )
    stored = json.loads((directory / "result.json").read_text())
    assert _bare(result) == {"event": "result", "directory": str(directory), **stored}
    controls = [(one["name"], one["done"], one["total"]) for one in told if one["event"] == "control"]
    assert {(name, done, 6) for name in ("host_on", "static") for done in range(7)} == set(controls)
    events = [_bare(one) for one in told if one["event"] not in ("run_begun", "control", "result")]
    logs = [(directory / name).read_text() for name in ("audit.jsonl", "metrics.jsonl")]
    for one in map(json.loads, "".join(logs).splitlines()):
        if one["event"] == "model":
            one = {key: value for key, value in one.items() if key not in ("modules", "places")}
        if one["event"] != "telemetry":
            events.remove(one)
    assert events == [], "all that was logged was told, and nothing else"
    assert {one["run_id"] for one in told} == {(directory / "run_id").read_text().strip()}
    assert not any("trace_id" in one for one in told[1:]), "it has no trace"
    for one in told:
        moment = datetime.fromisoformat(one["timestamp"])
        assert moment.utcoffset().total_seconds() == 0
        assert "time" not in one or moment.timestamp() == pytest.approx(one["time"], abs=0.002)
    assert {one["level"] for one in told} == {"info", "warning"}


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        (["--log-format", "json"], ["--plain"], "resumed      after"),
        pytest.param(["--plain"], ["--log-format", "json"], '"resumed"', marks=pytest.mark.long),
    ],
)
def test_a_run_is_resumed_with_another_presentation(first, then, says, short, tmp_path, monkeypatch, capsys):
    step = Session.step

    def interrupted(session, batch):
        if session.step_count == 16:
            signal.raise_signal(signal.SIGINT)
        return step(session, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Session, "step", interrupted)
        assert main([*short, *first]) == 130
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert not {"plain", "log_format"} & set(stored)
    capsys.readouterr()
    assert main(["run", "--resume", "last", "--output", str(tmp_path / "run"), *then]) == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--log-format", "json"]])
def test_of_several_processes_only_the_first_speaks(options, short, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main([*short, *options]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*short, *options]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_the_first_process_speaks(line, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert main(line) == 0
    assert "round 1      candidates:" in capsys.readouterr().out


def test_plain_lines_are_for_a_terminal_too_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(presentation(Options(plain=True)), PlainLines)


def test_without_rich_a_run_is_shown_line_by_line_and_says_why(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "esper.cli.console.live", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    presentation(Options()).say("note", "of the run")
    said, note = capsys.readouterr().out.splitlines()
    assert said.endswith("rich is not installed: pip install 'esper-morphogenetic[run]'")
    assert note == "note         of the run"


def test_a_log_for_machines_without_structlog_is_refused_and_nothing_is_written(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "structlog", None)
    assert main([*line, "--log-format", "json"]) == 2
    assert "pip install 'esper-morphogenetic[run]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _bare(event: dict) -> dict:
    return {key: value for key, value in event.items() if key not in ("level", "timestamp", "run_id")}
