"""``esper run --metrics-port`` and ``esper exporter``: real ports, real processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from esper.cli.main import main
from tests.brokers import free_port

SMALL = ["run", "--no-controls", "--plain", "--epochs", "6", "--min-targets", "0"]


def scraped(port: int) -> dict[str, float]:
    """All series at a port, as they are written there; none while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_a_run_shows_its_metrics_while_it_trains(tmp_path, capsys):
    port, found, ending = free_port(), {}, threading.Event()

    def watch() -> None:
        while not ending.wait(0.05):
            found.update(scraped(port))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert main([*SMALL, "--metrics-port", str(port), "--output", str(tmp_path / "mine")]) == 0
    ending.set()
    watcher.join()
    assert f"http://127.0.0.1:{port}/metrics" in capsys.readouterr().out
    run = (tmp_path / "mine" / "run_id").read_text().strip()
    assert found[f'esper_planned_steps{{run="{run}"}}'] == 150
    assert 0 < found[f'esper_step{{run="{run}"}}'] <= 150
    assert found[f'esper_host_parameters{{run="{run}"}}'] == 682
    assert scraped(port) == {}
    assert "metrics_port" not in (tmp_path / "mine" / "config.yaml").read_text()


def test_a_port_that_is_taken_is_said_once_and_the_run_goes_on(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([*SMALL, "--metrics-port", str(port), "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert out.count("without metrics") == 1
    assert f"127.0.0.1:{port}" in out
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["run", "--metrics-port", "70000"], "metrics_port must be 0 to 65535, not 70000."),
        (["run", "--metrics-port", "many"], "--metrics-port"),
        (["run", "--metrics-host", "0.0.0.0"], "metrics_host has no use without metrics_port."),
        (["exporter"], "--bus"),
        (["exporter", "--bus", "memory:", "--port", "-1"], "--port must be 0 to 65535, not -1."),
        (["exporter", "--bus", "memory:", "--port", "{taken}"], "Metrics cannot be served at 127.0.0.1:{taken}"),
        (["exporter", "--bus", "reddis://here"], "Did you mean 'redis'?"),
        (["exporter", "--bus", "redis://:secret@127.0.0.1:{free}"], "does not serve us"),
        (["exporter", "--bus", "memory:", "--prot", "3"], "Did you mean '--port'?"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(line, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"taken": taken.getsockname()[1], "free": free_port()}
        assert main([word.format(**ports) for word in line]) == 2
    said = capsys.readouterr().err
    assert message.format(**ports) in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [["run", "--metrics-port", "0"], ["exporter", "--bus", "memory:"]])
def test_without_its_library_the_extra_is_named(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in ("esper.observability.metrics.prometheus", "esper.cli.exporting"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(line) == 2
    assert "esper-morphogenetic[metrics]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_exporter_tells_of_runs_before_it_and_of_one_that_was_killed(tmp_path):
    """Real processes; the second run dies in the middle, and stays silent."""
    url = f"sqlite:{tmp_path / 'bus.db'}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def start(*arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "esper", *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    assert main([*SMALL, "--bus", url, "--output", str(tmp_path / "first")]) == 0
    second = start(*SMALL[:-1], "100000", "--bus", url, "--output", str(tmp_path / "second"))
    exporter = start("exporter", "--bus", url, "--port", "0")
    try:
        line = exporter.stdout.readline()
        port = int(re.search(r":(\d+)/metrics", line).group(1))
        first_id = (tmp_path / "first" / "run_id").read_text().strip()

        def series(name: str, run: str) -> float | None:
            return scraped(port).get(f'{name}{{run="{run}"}}')

        def wait_for(holds) -> None:
            deadline = time.monotonic() + 120
            while not holds():
                assert time.monotonic() < deadline, scraped(port)
                time.sleep(0.1)

        wait_for(lambda: (tmp_path / "second" / "run_id").exists())
        second_id = (tmp_path / "second" / "run_id").read_text().strip()
        wait_for(lambda: series("esper_run_finished", first_id) == 1)
        assert series("esper_step", first_id) == 150
        wait_for(lambda: (series("esper_step", second_id) or 0) > 50)
        assert series("esper_run_up", second_id) == 1
        assert series("esper_run_up", first_id) == 0
        second.send_signal(signal.SIGKILL)
        second.wait()
        wait_for(lambda: series("esper_run_up", second_id) == 0)
        found = scraped(port)
        assert [found[f'esper_runs{{status="{name}"}}'] for name in ("running", "finished", "dead")] == [0, 1, 1]
        exporter.terminate()
        assert exporter.wait(timeout=30) == 0
    finally:
        for process in (second, exporter):
            process.kill()
            process.stdout.close()
            process.wait()
