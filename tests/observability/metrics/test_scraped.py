"""A real Prometheus scrapes a real run, and the exporter that hears it over a bus."""

import json
import threading
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

UNMET = set() if torch.cuda.is_available() else {"device"}
"""What the run below has not where there is no GPU. The catalogue says which metrics need it."""


@dataclass
class Scraped:
    """A run that is over, and who scraped it."""

    prometheus: Prometheus
    directory: Path

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
    with prometheus(folder / "prometheus", {"run": metrics.port, "exporter": exporter.port}) as server:
        config = GrowthConfig()

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
            flags=Flags("digits", {name: Flag(name, True, "asked for") for name in FLAGS}),
            on_event=[metrics, link, wait],
        )
        link.follow(growth.session)
        growth.finish()
        assert link.close()
        assert eventually(lambda: all(server.value(f'esper_run_finished{{job="{job}"}}') == 1 for job in JOBS))
        eventually(lambda: comparable(server, "run") == comparable(server, "exporter"), within_s=10)
        ending.set()
        yield Scraped(server, folder / "run")
    for served in (metrics, exporter):
        served.close()
    for thread in threads:
        thread.join()


JOBS = ("run", "exporter")
LAST_SEEN = "esper_run_last_seen_timestamp_seconds"


def comparable(server: Prometheus, job: str) -> dict[Any, float]:
    """All but what only one of the two can know: telemetry does not go over the bus as lines, heartbeats only there."""
    alone = {name for name, metric in METRICS.items() if metric.needs == "exporter"} | {LAST_SEEN}
    return {
        key: value
        for key, value in server.series(job).items()
        if key[0] not in alone and ("event", "telemetry") not in key[1]
    }


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
