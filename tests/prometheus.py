"""A real Prometheus and Alertmanager for tests, on loopback, started here and stopped by their process ids."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.brokers import free_port, require

Series = tuple[str, frozenset[tuple[str, str]]]


class Prometheus:
    """One that runs.

    Args:
        url: of its API.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of its API."""
        text = urllib.parse.urlencode(query)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{text}", timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """Of an expression with one result; None if there is none."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def names(self, job: str) -> set[str]:
        """Of all metrics that were scraped from a job."""
        return set(self.ask("label/__name__/values", **{"match[]": f'{{job="{job}"}}'}))

    def series(self, job: str) -> dict[Series, float]:
        """All series of a job now, without the labels that Prometheus adds."""
        found = {}
        for one in self.ask("query", query=f'{{job="{job}",__name__=~"esper_.*"}}')["result"]:
            labels = {name: text for name, text in one["metric"].items() if name not in ("job", "instance")}
            found[labels.pop("__name__"), frozenset(labels.items())] = float(one["value"][1])
        return found


def eventually(holds: Callable[[], bool], within_s: float = 120.0) -> bool:
    """Whether something comes true in time."""
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, int], rules: Path | None = None, alertmanager: int | None = None
) -> Iterator[Prometheus]:
    """A Prometheus that scrapes ports of loopback every second, by the names of their jobs.

    Args:
        folder: for its files.
        targets: ports, by the names of their jobs.
        rules: that it evaluates every second.
        alertmanager: port of one to which it sends alerts.
    """
    jobs = [{"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{at}"]}]} for name, at in targets.items()]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config = {"global": every, "scrape_configs": jobs, "rule_files": [] if rules is None else [str(rules)]}
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    options = ["--config.file", str(folder / "prometheus.yml"), "--storage.tsdb.path", str(folder / "data")]
    with _serving("prometheus", options, folder / "log") as port:
        yield Prometheus(f"http://127.0.0.1:{port}")


@contextmanager
def alertmanager(folder: Path, config: str) -> Iterator[int]:
    """An Alertmanager of its own; its port."""
    (folder / "alertmanager.yml").write_text(config)
    options = ["--config.file", str(folder / "alertmanager.yml"), "--storage.path", str(folder / "alerts")]
    with _serving(
        "prometheus-alertmanager", [*options, "--cluster.listen-address="], folder / "alertmanager.log"
    ) as port:
        yield port


@contextmanager
def _serving(server: str, options: list[str], log: Path) -> Iterator[int]:
    """The port of a server that is ready."""
    require(server)
    port = free_port()
    with log.open("wb") as file:
        command = [server, *options, "--web.listen-address", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5).status == 200
        except OSError:
            return False

    try:
        assert eventually(is_ready), log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait()
