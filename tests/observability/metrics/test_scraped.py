"""A real Prometheus scrapes a real run, and the exporter that hears it over a bus."""

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.flags import FLAGS, Flag, Flags
from esper.evaluation.growing import growing
from esper.observability.metrics.catalogue import METRICS
from esper.observability.metrics.over_bus import Runs
from esper.observability.metrics.prometheus import Metrics, MetricsServer
from esper.oona.codec import Codec
from esper.oona.url import open_bus
from esper.runtime.link.link import Link
from esper.tamiyo.serving import Controller
from esper.tasks.catalogue import load_task
from tests.prometheus import Prometheus, eventually, prometheus
from tests.runtime.toy import Recipe
from tests.runtime.toy import growing as one_candidate

UNMET = set() if torch.cuda.is_available() else {"device"}
"""What the run below has not where there is no GPU. The catalogue says which metrics need it."""


DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


@dataclass
class Scraped:
    """A run that is over, and who scraped it."""

    prometheus: Prometheus
    directory: Path
    begun: float

    def lines(self, log: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / f"{log}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[Scraped]:
    """24 epochs on the digits, decided by a controller at the other end of the bus."""
    folder, url = tmp_path_factory.mktemp("scraped"), "memory:scraped"
    (folder / "prometheus").mkdir()
    ending = threading.Event()
    controller = Controller(open_bus(url), Codec(), "heuristic", "one")
    runs = Runs(lambda: open_bus(url), Codec())
    threads = [threading.Thread(target=serve, args=(ending,), daemon=True) for serve in (controller.serve, runs.follow)]
    for thread in threads:
        thread.start()
    metrics, exporter, link = Metrics(0, run="digits"), MetricsServer(runs.samples, 0), Link(url, "digits")
    other = Metrics(0, run="other")
    ports = {"run": metrics.port, "exporter": exporter.port, "other": other.port}
    with prometheus(folder / "prometheus", ports, RULES) as server:
        config = GrowthConfig(colonies=[], min_targets=0)
        begun = time.time()
        train_without_flag(other, server)

        def wait(line: dict[str, Any]) -> None:
            """Where grafts live, until that was scraped: a short run would be over before."""
            if line.get("grafts") and server.value("count(esper_alpha)") is None:
                assert eventually(lambda: server.value("count(esper_alpha)") == len(JOBS))

        growth = growing(
            load_task("digits", 0, "mlp"),
            config,
            epochs=24,
            batch_size=32,
            lr=5e-3,
            schedule="cosine",
            seed=0,
            policy=link.policy(config, 60.0, None),
            directory=folder / "run",
            flags=flags(is_on=True),
            on_event=[metrics, link, wait],
        )
        link.follow(growth.session)
        growth.finish()
        assert link.close()
        assert eventually(lambda: all(server.value(f'esper_run_finished{{job="{job}"}}') == 1 for job in JOBS))
        eventually(lambda: comparable(server, "run") == comparable(server, "exporter"), within_s=10)
        ending.set()
        yield Scraped(server, folder / "run", begun)
    for served in (metrics, exporter, other):
        served.close()
    for thread in threads:
        thread.join()


def flags(*, is_on: bool) -> Flags:
    """All of a run."""
    return Flags("digits", {name: Flag(name, is_on or name != OFF, "asked for") for name in FLAGS})


def train_without_flag(metrics: Metrics, server: Prometheus) -> None:
    """A run for which a flag is off; it waits until its first epochs were scraped."""

    def wait(line: dict[str, Any]) -> None:
        if line["event"] == "epoch" and line["epoch"] == 3:
            assert eventually(lambda: (server.value('esper_step_seconds_count{job="other"}') or 0) > 0)

    trial = Recipe(one_candidate(keep_looks=(0.6, 0.8))).build(on_event=[metrics, wait], flags=flags(is_on=False))
    trial.train()
    trial.session.finish()


OFF = "message_bus"
"""The flag that is off for the second run."""

JOBS = ("run", "exporter")
LAST_SEEN = "esper_run_last_seen_timestamp_seconds"


def comparable(server: Prometheus, job: str) -> dict[Any, float]:
    """All but what only one of the two can know: heartbeats go over the bus only."""
    alone = {name for name, metric in METRICS.items() if metric.needs == "exporter"} | {LAST_SEEN}
    return {key: value for key, value in server.series(job).items() if key[0] not in alone}


def expected(job: str) -> set[str]:
    """Names of the series that a job must have."""
    found = set()
    for name, metric in METRICS.items():
        if metric.needs in UNMET or (metric.needs == "exporter" and job == "run"):
            continue
        found |= {f"{name}_{part}" for part in ("bucket", "count", "sum")} if metric.kind == "histogram" else {name}
    return found


@pytest.mark.parametrize("job", JOBS)
def test_every_metric_of_the_catalogue_was_seen_and_none_outside_it(scraped, job):
    assert {name for name in scraped.prometheus.names(job) if name.startswith("esper_")} == expected(job)


def test_what_is_scraped_is_what_the_run_has_written_down(scraped):
    server, audit = scraped.prometheus, scraped.lines("audit")
    epochs = [line for line in scraped.lines("metrics") if line["event"] == "epoch"]
    ended = [line for line in audit if line["event"] == "field_report"]
    assert len(ended) > 1
    assert server.value('esper_step{job="exporter"}') == epochs[-1]["step"] == 600
    assert server.value('esper_select_loss{job="exporter"}') == pytest.approx(epochs[-1]["val_loss"])
    assert server.value('sum(esper_lifecycles_total{job="exporter"})') == len(ended)
    assert server.value('sum(esper_lifecycle_steps_sum{job="exporter"})') == sum(
        line["ended_step"] - line["born_step"] for line in ended
    )
    assert server.value('sum(esper_transitions_total{job="exporter"})') == sum(
        line["event"] == "transition" for line in audit
    )
    assert server.value('esper_step_seconds_count{job="exporter"}') == 600
    assert server.value('sum(esper_seeds{job="exporter"})') == sum(one["seeds"] for one in audit[0]["places"])
    assert server.value('esper_decisions_total{job="exporter"}') > 1
    assert server.value('esper_decisions_missed_total{job="exporter"}') == 0
    written = [line for line in audit if line["event"] == "checkpoint"]
    assert server.value('esper_checkpoints_total{job="exporter"}') == len(written) > 23
    assert server.value('esper_checkpoint_bytes{job="exporter"}') == written[-1]["bytes"]


def test_the_exporter_tells_of_a_run_what_the_run_tells_itself(scraped):
    own = comparable(scraped.prometheus, "run")
    assert len(own) > 150
    assert comparable(scraped.prometheus, "exporter") == own


PANELS = [
    pytest.param(target["expr"], target["range"], id=f"{path.stem}: {panel['title']} {target['refId']}")
    for path in DASHBOARDS
    for panel in json.loads(path.read_text())["panels"]
    for target in panel.get("targets", [])
]

WITHOUT_A_GPU = ("esper_device_memory_bytes", "esper_device_memory_peak_bytes", "esper_gpu_utilisation_ratio")
"""Panels with these are empty where there is no GPU."""


def shown(scraped: Scraped, expression: str, *, is_range: bool) -> list[float]:
    """All values that a panel would show of the two runs, as Grafana asks for them."""
    for name, value in {"$run": "digits|other", "$flag": OFF, "$__rate_interval": "1m"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    if not is_range:
        return [float(one["value"][1]) for one in scraped.prometheus.ask("query", query=expression)["result"]]
    times = {"start": str(scraped.begun), "end": str(time.time()), "step": "1"}
    found = scraped.prometheus.ask("query_range", query=expression, **times)["result"]
    return [float(value) for one in found for _, value in one["values"]]


@pytest.mark.parametrize(("expression", "is_range"), PANELS)
def test_every_panel_of_every_dashboard_has_data(scraped, expression, is_range):
    values = shown(scraped, expression, is_range=is_range)
    is_expected = torch.cuda.is_available() or not any(name in expression for name in WITHOUT_A_GPU)
    assert any(math.isfinite(value) for value in values) == is_expected


def test_a_panel_of_what_nobody_tells_would_be_empty(scraped):
    """Or the test above could not fail."""
    assert scraped.prometheus.ask("query", query='sum by (run) (esper_losses{run=~"digits"})')["result"] == []


def test_prometheus_evaluates_every_rule_on_a_real_run_and_none_fires(scraped):
    groups = scraped.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["health"] for rule in rules} == {"ok"}
    assert scraped.prometheus.ask("query", query='count_over_time(ALERTS{alertstate="firing"}[10m])')["result"] == []
