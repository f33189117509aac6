"""Faults of real processes come out at the other end: run, bus, exporter, Prometheus, Alertmanager, whoever is told.

All with the rules and the routes that are deployed; only their durations are shortened: minutes become seconds.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import warm
from tests.brokers import free_port
from tests.prometheus import Prometheus, alertmanager, eventually, prometheus

DEPLOY = Path(__file__).parents[2] / "deploy"


class Told(ThreadingHTTPServer):
    """Whom Alertmanager tells.

    Attributes:
        alerts: as they came, with their status.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Hear)
        self.alerts: list[dict[str, Any]] = []

    def of(self, name: str, status: str) -> list[dict[str, Any]]:
        return [one for one in self.alerts if one["labels"]["alertname"] == name and one["status"] == status]


class Hear(BaseHTTPRequestHandler):
    """A webhook."""

    server: Told

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.alerts += [one | {"receiver": told["receiver"]} for one in told["alerts"]]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@dataclass
class World:
    """What is watched, and who is told."""

    folder: Path
    prometheus: Prometheus
    told: Told
    processes: list[warm.Started] = field(default_factory=list)

    @property
    def bus(self) -> str:
        return f"sqlite:{self.folder / 'bus.db'}"

    def start(self, *arguments: str) -> warm.Started:
        command, log = ["-m", "esper", *arguments, "--bus", self.bus], self.folder / f"log-{len(self.processes)}"
        self.processes.append(warm.Started(command, environment=os.environ | {"OMP_NUM_THREADS": "1"}, log=log))
        return self.processes[-1]

    def run(self, name: str, *arguments: str) -> str:
        """Start a run that goes on for long; its id."""
        directory = self.folder / name
        self.start("run", "--no-controls", "--plain", "--epochs", "100000", "--output", str(directory), *arguments)
        assert eventually((directory / "run_id").exists)
        return (directory / "run_id").read_text().strip()

    def hears(self, holds: Callable[[], Any]) -> None:
        logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("log-*"))]
        assert eventually(lambda: bool(holds())), (self.told.alerts, logs)


def hurried(text: str) -> str:
    """Minutes as seconds, hours as minutes."""
    shorter = {"m": "s", "h": "m"}
    return re.sub(r"\b(\d+)([mh])\b", lambda found: found[1] + shorter[found[2]], text)


def routes(port: int) -> str:
    """Those that are deployed, with an address for each receiver."""
    config = yaml.safe_load(
        re.sub(
            r"(group_wait|group_interval): \w+", r"\1: 1s", (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
        )
    )
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": f"http://127.0.0.1:{port}"}]
    return json.dumps(config)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder, told, port = tmp_path_factory.mktemp("world"), Told(), free_port()
    threading.Thread(target=told.serve_forever, daemon=True).start()
    rules = folder / "rules.yml"
    rules.write_text(hurried((DEPLOY / "prometheus" / "rules.yml").read_text()))
    with (
        alertmanager(folder, routes(told.server_port)) as alerts,
        prometheus(folder, {"esper": port}, rules, alerts) as server,
    ):
        world = World(folder, server, told)
        world.start("exporter", "--port", str(port))
        try:
            yield world
        finally:
            for process in world.processes:
                process.kill()
                process.wait()
    told.shutdown()
    told.server_close()


def test_a_loss_that_is_nan_reaches_whoever_is_told_at_once(world):
    run_id = world.run("diverging", "--lr", "1e30")
    world.hears(lambda: world.told.of("EsperLossNotFinite", "firing"))
    (alert,) = world.told.of("EsperLossNotFinite", "firing")[:1]
    assert alert["receiver"] == "at-once"
    assert alert["labels"] == {"alertname": "EsperLossNotFinite", "run": run_id, "severity": "critical"}
    assert alert["annotations"]["runbook_url"] == "docs/runbook.md#esperlossnotfinite"


@pytest.mark.long
def test_a_controller_that_is_killed_does_so_and_again_once_it_is_back(world):
    controller = world.start("tamiyo", "serve")
    run_id = world.run("served", "--policy", "remote", "--decision-timeout", "1")
    world.hears(lambda: (world.prometheus.value(f'esper_decisions_total{{run="{run_id}"}}') or 0) > 1)
    assert world.told.of("EsperDeadController", "firing") == []
    controller.kill()
    controller.wait()
    world.hears(lambda: world.told.of("EsperDeadController", "firing"))
    assert world.told.of("EsperDeadController", "firing")[0]["labels"]["run"] == run_id
    world.start("tamiyo", "serve")
    world.hears(lambda: world.told.of("EsperDeadController", "resolved"))
    assert [one["labels"]["run"] for one in world.told.of("EsperDeadRun", "firing")] == []
