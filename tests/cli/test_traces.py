"""``esper run --traces`` and ``esper tamiyo serve --traces``, over the real Redis, as real processes."""

import json
import os
import time

import pytest

from esper.cli.main import main
from esper.observability.spans import trace_id
from esper.oona.codec import TRACEPARENT
from esper.oona.environment import codec
from esper.oona.messages import GerminationCommand
from esper.oona.url import open_bus
from tests import warm
from tests.brokers import redis_url
from tests.cli.test_bus import esper, wait_for
from tests.collector import collecting, faults_of

__all__ = ["redis_url"]

SMALL = ["--no-controls", "--epochs", "12", "--min-targets", "0"]
SENDER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_and_its_controller_are_one_tree(redis_url, tmp_path, monkeypatch):
    """And a command from elsewhere is part of its sender's trace; logs of both name the spans. Messages are signed."""
    monkeypatch.setenv("ESPER_BUS_KEYS", f"one={'ab' * 32}")
    with collecting() as collector:
        watched = ["--traces", collector.url, "--log-format", "json"]
        serve = esper("tamiyo", "serve", "--bus", redis_url, *watched, output=tmp_path / "serve")
        wait_for(tmp_path / "serve", "heuristic decides")
        asked = ["--bus", redis_url, "--policy", "remote", "--decision-timeout", "600", "--output", str(tmp_path / "r")]
        run = esper("run", *SMALL, *asked, *watched, output=tmp_path / "run")
        wait_for(tmp_path / "run", "run_begun")
        run_id = (tmp_path / "r" / "run_id").read_text().strip()
        send(redis_url, run_id)
        assert run.wait(timeout=600) == 0, (tmp_path / "run").read_text()
        serve.terminate()
        assert serve.wait(timeout=60) == 0
    ours = [one for one in collector.spans if one.trace == trace_id(run_id)]
    assert faults_of(ours) == []
    (root,) = (one for one in ours if one.name == "run")
    names = {(one.service, one.name) for one in ours}
    assert names >= {("esper-run", name) for name in ("run", "epoch", "round", "arm", "lifecycle", "command")}
    decisions = [one for one in ours if one.name == "decision"]
    assert {(one.service, one.parent) for one in decisions} == {("esper-tamiyo", root.id)}
    (foreign,) = (one for one in collector.spans if one not in ours)
    assert (foreign.name, foreign.trace, foreign.parent) == ("command", *SENDER)
    assert foreign.links == [(root.trace, root.id)]

    told, decided = lines((tmp_path / "run").read_text()), lines((tmp_path / "serve").read_text())
    assert {one["run_id"] for one in told} == {run_id}
    known = {one.id for one in collector.spans}
    assert {one["span_id"] for one in told} <= known
    (command,) = (one for one in told if one["event"] == "command")
    assert (command["command_id"], command["accepted"], command["trace_id"]) == ("c", False, SENDER[0])
    of_decisions = [one for one in decided if one["event"] == "decision"]
    assert {(one["run_id"], one["trace_id"]) for one in of_decisions} == {(run_id, root.trace)}
    assert {one["span_id"] for one in of_decisions} == {one.id for one in decisions}


def send(url: str, run_id: str) -> None:
    """A command that will be refused."""
    body = GerminationCommand(
        run_id=run_id, command_id="c", layer_id="nowhere", seed_ids="all", blueprint="glu", settings={}, who="me"
    )
    bus = open_bus(url)
    bus.publish(codec(os.environ).encode(body, run_id, {TRACEPARENT: f"00-{SENDER[0]}-{SENDER[1]}-01"}))
    bus.close()


def test_a_collector_that_is_not_there_is_told_once_and_holds_nothing_up(tmp_path, capsys):
    line = ["run", "--no-controls", "--plain", "--epochs", "3", "--output", str(tmp_path / "run")]
    began = time.monotonic()
    assert main([*line, "--traces", "http://127.0.0.1:9"]) == 0
    assert time.monotonic() - began < 60
    out, err = capsys.readouterr()
    assert out.count("Traces are not taken by their collector") == 1
    assert trace_id((tmp_path / "run" / "run_id").read_text().strip()) in out
    assert err == ""
    assert (tmp_path / "run" / "result.json").exists()
    assert "traces" not in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize("command", [["run"], ["tamiyo", "serve", "--bus", "memory:"]])
def test_what_is_no_collector_is_refused_and_nothing_is_written(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--traces", "jaeger:6831"]) == 2
    wanted = "must be like http://127.0.0.1:4318, not 'jaeger:6831'."
    assert capsys.readouterr().err == f"esper: The URL of the collector of traces {wanted}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("further", [[], ["--traces", "http://127.0.0.1:9"]])
def test_off_nothing_of_it_is_loaded(further, tmp_path):
    """The API of OpenTelemetry may be: torch looks for a client of Redis, and that for it."""
    code = (
        "import sys; from esper.cli.main import main; assert main(sys.argv[1:]) == 0; "
        "print(*(name in sys.modules for name in ('esper.observability.tracing', 'opentelemetry.exporter')))"
    )
    line = ["run", "--no-controls", "--plain", "--epochs", "1", "--output", str(tmp_path / "run"), *further]
    done = warm.run(["-c", code, *line])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{bool(further)} {bool(further)}"


def test_what_libraries_log_is_part_of_the_log(tmp_path, monkeypatch, capsys):
    """In this process: somebody else's code logs in the middle of the run."""
    source = "import logging\nfrom torch import nn\n\ndef net(inputs, classes):\n"
    source += "    logging.getLogger('mine').warning('watch out, %s', 'you')\n    return nn.Linear(inputs, classes)\n"
    (tmp_path / "logging_nets.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    line = ["run", "--no-controls", "--epochs", "1", "--host", "logging_nets:net", "--output", "r", "--max-rounds", "0"]
    assert main([*line, "--log-format", "json"]) == 0
    logged = [one for one in lines(capsys.readouterr().out) if one["event"] == "log"]
    run_id = (tmp_path / "r" / "run_id").read_text().strip()
    assert {(one["level"], one["logger"], one["text"], one["run_id"]) for one in logged} == {
        ("warning", "mine", "watch out, you", run_id)
    }
