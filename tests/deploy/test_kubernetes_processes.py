"""What a pod runs, as a real process on loopback: asked as the kubelet would, it ends when told and loses nothing."""

import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.cli.main import DONE, INTERRUPTED
from tests import warm
from tests.brokers import free_port, require, started
from tests.deploy.manifests import ROOT, Container, containers, documents, named

EVERY = documents()
PROGRAMS = {"esper": ["-m", "esper"], "torchrun": ["-m", "torch.distributed.run"]}
KEYS = "first=" + "5e" * 32
STOPPED = 1  # of torchrun, whatever its ranks end with

Start = Callable[..., warm.Started]


def container(kind: str, name: str) -> Container:
    (found,) = containers([named(EVERY, kind, name)])
    return found


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """Starts what a container does; words of its line are put in the place of others."""
    running: list[warm.Started] = []

    def starting(of: Container, log: str, values: dict[str, str], words: dict[str, str]) -> warm.Started:
        program, *line = of.line({"ESPER_BUS": "", **values})
        old = re.compile("|".join(map(re.escape, words)))  # all at once: what was put in may hold another one
        line = [old.sub(lambda found: words[found[0]], word) for word in line]
        environment = {**os.environ, **values, "PYTHONPATH": os.pathsep.join(sys.path)}
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        process = warm.Started([*PROGRAMS[program], *line], environment=environment, log=tmp_path / log)
        running.append(process)
        return process

    yield starting
    for process in running:
        if process.poll() is None:
            process.terminate()
        process.wait()


def eventually(is_so: Callable[[], Any], process: warm.Started, log: Path) -> None:
    """Wait until it is so, as long as the process lives."""
    while not is_so():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


def probe(of: Container, kind: str, port: int) -> int | None:
    """The status that the kubelet would get at this probe; None if nobody answers."""
    path = of.spec[kind]["httpGet"]["path"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def ended(process: warm.Started) -> int:
    """The exit code of a process that is told to end."""
    process.terminate()
    return process.wait()


@pytest.mark.parametrize("name", ["esper-exporter", "tamiyo"])
def test_a_server_answers_its_probes_and_ends_when_told(name, start, redis_url, tmp_path):
    of, port = container("Deployment", name), free_port()
    (listening,) = of.ports.values()
    values = {"ESPER_BUS": redis_url, "ESPER_BUS_KEYS": KEYS}
    process = start(of, "log", values, {"0.0.0.0": "127.0.0.1", str(listening): str(port)})
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        eventually(lambda kind=kind: probe(of, kind, port) == 200, process, tmp_path / "log")
    assert ended(process) == DONE


def test_a_controller_without_a_bus_is_not_ready_but_lives(start, tmp_path):
    require("redis-server")
    at, of, port = free_port(), container("Deployment", "tamiyo"), free_port()
    url = f"redis://127.0.0.1:{at}/0"
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(at), "--dir", str(tmp_path), "--save", ""]
    broker = started(command, url, tmp_path / "redis")
    try:
        values = {"ESPER_BUS": url, "ESPER_BUS_KEYS": KEYS}
        process = start(of, "log", values, {"0.0.0.0": "127.0.0.1", "8080": str(port)})
        eventually(lambda: probe(of, "readinessProbe", port) == 200, process, tmp_path / "log")
    finally:
        broker.kill()
        broker.wait()
    eventually(lambda: probe(of, "readinessProbe", port) == 503, process, tmp_path / "log")
    assert probe(of, "livenessProbe", port) == 200
    assert ended(process) == DONE


class Ranks:
    """The pods of the job of several ranks, each with one; all write to one directory, as on its claim.

    Args:
        start: starts one.
        folder: where ``/runs`` is.
    """

    of = container("Job", "several-gpus")

    def __init__(self, start: Start, folder: Path) -> None:
        self.folder, self._port = folder, free_port()
        words = {
            "/esper/": f"{ROOT}/",
            "/runs": str(folder),
            "several-gpus-0.several-gpus": "127.0.0.1",
            "29500": str(self._port),
            "per-node=gpu": "per-node=1",
            "40": "6",
        }
        self.log = folder.with_suffix(".log")
        self.pods = [start(self.of, self.log.name, {"JOB_COMPLETION_INDEX": index}, words) for index in ("0", "1")]

    def after(self, epochs: int) -> "Ranks":
        """Those that have come so far."""
        path = self.folder / "several-gpus" / "metrics.jsonl"
        eventually(lambda: path.exists() and path.read_text().count('"epoch", ') >= epochs, self.pods[0], self.log)
        return self

    def stop(self) -> list[int]:
        """Exit codes; only the second pod is told."""
        return [ended(self.pods[1]), self.pods[0].wait()]


def test_where_one_pod_is_told_to_end_all_ranks_save_after_the_same_step(start, tmp_path):
    ranks = Ranks(start, tmp_path / "runs")
    assert ranks.after(1).stop() == [STOPPED, STOPPED]
    said = [
        line.partition(" was stopped ")[2] for line in ranks.log.read_text().splitlines() if " was stopped " in line
    ]
    assert len(said) == 2
    assert len(set(said)) == 1
    saved = ranks.folder / "several-gpus" / "checkpoints"
    assert {path.name for path in saved.glob("[0-9]*")} == {path.name for path in (saved / "rank1").glob("[0-9]*")}


@pytest.mark.long
def test_ranks_that_were_stopped_twice_end_with_the_bytes_of_those_that_were_not(start, tmp_path):
    for epochs in (1, 3):
        assert Ranks(start, tmp_path / "stopped").after(epochs).stop() == [STOPPED, STOPPED]
    for name in ("stopped", "undisturbed"):
        assert [pod.wait() for pod in Ranks(start, tmp_path / name).pods] == [DONE, DONE]
    one, other = (torch.load(tmp_path / name / "several-gpus" / "model.pt") for name in ("stopped", "undisturbed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_in_the_next_pod(start, redis_url, tmp_path):
    """Beside the controller that it asks; the same line begins it and goes on with it."""
    of, tamiyo = container("Job", "run"), container("Deployment", "tamiyo")
    values = {"ESPER_BUS": redis_url, "ESPER_BUS_KEYS": KEYS}
    start(tamiyo, "tamiyo", values, {"0.0.0.0:8080": "127.0.0.1:0"})
    (tmp_path / "run.yaml").write_text(named(EVERY, "ConfigMap", "esper")["data"]["run.yaml"])
    words = {"/etc/esper": str(tmp_path), "/runs": str(tmp_path / "runs")}
    log = tmp_path / "log"
    for pod in (1, 2, 3):
        process = start(of, "log", values, words)
        eventually(lambda pod=pod: log.read_text().count('"event": "checkpoint"') > 2 * pod, process, log)
        assert ended(process) == INTERRUPTED
    assert log.read_text().count('"event": "resumed"') == 2
