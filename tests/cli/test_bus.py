"""``esper run --bus``, ``esper tamiyo serve`` and ``esper bus``, with the real Redis and real processes."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from esper.cli.main import main
from esper.oona.bus import Message
from esper.oona.codec import Codec
from esper.oona.messages import GerminationCommand, RunHeartbeat
from esper.oona.url import open_bus
from esper.runtime.session import Session
from tests import warm
from tests.brokers import free_port, redis_url
from tests.runtime.toy import timeless

__all__ = ["redis_url"]

SMALL = ["--no-controls", "--plain", "--epochs", "12", "--min-targets", "0"]


def esper(*arguments: str, output: Path) -> warm.Started:
    return warm.Started(["-m", "esper", *arguments], environment=os.environ | {"OMP_NUM_THREADS": "1"}, log=output)


def told(directory: Path) -> list[dict]:
    """What a run's audit log says, without the time of day and what tells of the machine."""
    return timeless([json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()])


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, path.read_text() if path.exists() else f"no {path}"
        time.sleep(0.05)


def serve(url: str, log: Path) -> warm.Started:
    process = esper("tamiyo", "serve", "--bus", url, output=log)
    wait_for(log, "heuristic decides")
    return process


@pytest.mark.parametrize("seeds", [(0,), pytest.param((0, 1), marks=pytest.mark.long)])
def test_runs_end_as_they_would_whatever_becomes_of_the_controller(redis_url, tmp_path, seeds):
    """The controller is killed once candidates are tried, and started again."""
    first = serve(redis_url, tmp_path / "first")
    asked = ["--bus", redis_url, "--policy", "remote", "--decision-timeout", "600"]
    runs = {
        seed: esper(
            "run",
            *SMALL,
            *asked,
            "--seed",
            str(seed),
            "--output",
            str(tmp_path / f"far{seed}"),
            output=tmp_path / f"{seed}",
        )
        for seed in seeds
    }
    wait_for(tmp_path / "first", "GERMINATED")
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = serve(redis_url, tmp_path / "second")
    for seed, run in runs.items():
        assert run.wait(timeout=600) == 0, (tmp_path / f"{seed}").read_text()
    second.terminate()
    assert second.wait(timeout=60) == 0
    for seed in runs:
        near = tmp_path / f"near{seed}"
        assert main(["run", *SMALL, "--seed", str(seed), "--output", str(near)]) == 0
        far = told(tmp_path / f"far{seed}")
        assert any(line["event"] == "round_begun" for line in far)
        assert far == told(near)


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:{tmp_path / 'bus.db'}"


class TestLooking:
    def test_a_run_can_be_followed(self, url, tmp_path, capsys):
        assert main(["run", *SMALL, "--bus", url, "--output", str(tmp_path / "run")]) == 0
        capsys.readouterr()
        assert main(["bus", "topics", "--bus", url]) == 0
        topics = dict(line.split() for line in capsys.readouterr().out.splitlines())
        assert {"kasmina.health.layer", "kasmina.lifecycle"} <= set(topics)
        count = int(topics["kasmina.lifecycle"].replace(",", ""))
        line = ["bus", "tail", "--bus", url, "--topic", "kasmina.lifecycle", "--oldest", "--count", str(count)]
        assert main(line) == 0
        seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert seen[-1]["kind"] == "RunHeartbeat"
        assert seen[-1]["body"]["is_finished"]
        assert {one["key"] for one in seen} == {(tmp_path / "run" / "run_id").read_text().strip()}

    @pytest.mark.parametrize(
        ("raised", "is_stopped"), [(KeyboardInterrupt(), True), (RuntimeError("a fault of the run"), False)]
    )
    def test_the_last_heartbeat_tells_a_run_that_was_stopped_from_one_that_failed(
        self, url, tmp_path, capsys, monkeypatch, raised, is_stopped
    ):
        def ends(*_):
            raise raised

        monkeypatch.setattr(Session, "after_epoch", ends)
        with suppress(RuntimeError):
            assert main(["run", *SMALL, "--bus", url, "--output", str(tmp_path / "run")]) == 130
        delivered = open_bus(url).subscribe(RunHeartbeat.topic, "test", "one", start="oldest").receive(100)
        beats = [Codec().decode(one.message) for one in delivered]
        assert [one.is_stopped for one in beats if isinstance(one, RunHeartbeat)][-1] is is_stopped

    def test_dead_letters_are_shown_and_published_again(self, url, capsys):
        bus = open_bus(url)
        topic = GerminationCommand.topic
        subscription = bus.subscribe(topic, "run", "one")
        bus.publish_batch([Message(topic, "run", b"noise"), Message(topic, "run", b"more noise")])
        for delivery in subscription.receive():
            subscription.reject(delivery, "cannot be read")
        assert main(["bus", "dead-letters", "--bus", url, "--topic", topic]) == 0
        letters = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(one["reason"], one["key"], one["bytes"]) for one in letters] == [
            ("cannot be read", "run", 5),
            ("cannot be read", "run", 10),
        ]
        assert main(["bus", "requeue", "--bus", url, "--topic", topic, "--id", letters[0]["id"]]) == 0
        assert "1 messages" in capsys.readouterr().out
        assert [one.message.body for one in subscription.receive()] == [b"noise"]
        assert main(["bus", "requeue", "--bus", url, "--topic", topic]) == 0
        assert bus.dead_letters(topic) == []
        bus.close()

    def test_what_cannot_be_read_is_told(self, url, capsys):
        bus = open_bus(url)
        good = GerminationCommand(run_id="run", command_id="c", layer_id="0", seed_ids=1, blueprint="glu", settings={})
        bus.publish_batch([Message(good.topic, "run", b"noise", {"kind": "Unheard"}), Codec().encode(good, "run")])
        bus.close()
        assert main(["bus", "tail", "--bus", url, "--topic", good.topic, "--oldest", "--count", "2"]) == 0
        first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert first["unreadable"] == "its kind is unknown: 'Unheard'"
        assert second["body"]["blueprint"] == "glu"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["run", "--bus", "amqp://here"], "'amqp://here' is no URL of a bus. Valid: kafka, memory"),
        (["run", "--bus", "reddis://:secret@here"], "Did you mean 'redis'?"),
        (["run", "--bus", "redis://:secret@127.0.0.1:{port}"], "redis://***@127.0.0.1:{port} does not serve us"),
        (["tamiyo", "serve", "--bus", "nats://user:secret@127.0.0.1:{port}"], "does not serve us"),
        (["bus", "topics", "--bus", "kafka://user:secret@127.0.0.1:{port}"], "does not serve us"),
        (["bus", "topics", "--bus", "sqlite:/nowhere/at/all.db"], "cannot be opened"),
        (["bus", "topics", "--bus", "sqlite:"], "names no file"),
        (["bus", "topics", "--bus", "memory:?bound=none"], "bound must be a whole number"),
        (["bus", "topics", "--bus", "memory:?bond=3"], "'bond' is no option of a bus"),
        (["bus", "tail", "--bus", "memory:", "--topic", "kasmina.lifecicle"], "Did you mean 'kasmina.lifecycle'?"),
        (["bus", "dead-letters", "--bus", "memory:"], "needs a topic"),
        (["run", "--policy", "remote"], "Name it by --bus URL"),
        (["tamiyo", "serve", "--bus", "memory:", "--policy", "heurist"], "Did you mean 'heuristic'?"),
        (["tamiyo", "--bus", "memory:"], "ACTION"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence_without_secrets(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = str(free_port())
    assert main([word.format(port=port) for word in line]) == 2
    said = capsys.readouterr().err
    assert message.format(port=port) in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_password_is_told_without_it(tmp_path, capsys):
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--requirepass", "right", "--save", ""]
    server = subprocess.Popen([*command, "--dir", str(tmp_path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while main(["bus", "topics", "--bus", f"redis://:right@127.0.0.1:{port}"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        capsys.readouterr()
        assert main(["bus", "topics", "--bus", f"redis://:verywrong@127.0.0.1:{port}"]) == 2
        said = capsys.readouterr().err
        assert "refuses us" in said
        assert "verywrong" not in said
    finally:
        server.terminate()
        server.wait()
