"""Runs as a Prometheus has scraped them, from ``esper exporter`` or from runs with ``--metrics-port``."""

import http.client
import json
import math
import time
import urllib.request
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from esper.contracts.errors import ConfigError
from esper.evaluation.rollout.health import Point, RunHealth
from esper.evaluation.rollout.lines import AHEAD_S

_TIMEOUT_S = 10.0
_MOST_BYTES = 256 * 2**20
_BEFORE_S = 300.0
"""How far back before a rollout is looked, to know the runs that were there already."""

_LATE_S = 60.0
"""Lines and heartbeats of a run overtake each other on a bus: a step may fall back for so long."""

_OTHER = "other"
"""What an exporter calls the runs beyond those that it shows one by one."""

_TROUBLE = {
    "esper_rollbacks_total": "it was rolled back",
    "esper_emergencies_total": "it had an emergency",
    "esper_faults_total": "a place's values were not finite",
    "esper_losses_not_finite_total": "its loss is not finite",
}
_SEEN, _STEP, _LOSS = "esper_run_last_seen_timestamp_seconds", "esper_step", "esper_select_loss"
_HELD = ("esper_memory_bytes", "esper_device_memory_bytes")
_ABOUT = ("esper_run_info", "esper_host_parameters", "esper_planned_steps", "esper_run_finished", "esper_flag")
_READ = (_SEEN, _STEP, _LOSS, *_HELD, *_ABOUT, *_TROUBLE)
_EVENTS = {kind: f"esper_events_total {kind}" for kind in ("model", "epoch", "vitals")}


@dataclass
class _Series:
    """One metric of a run: values by the times of their scrapes, and the labels that came last."""

    values: dict[float, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def last(self) -> float | None:
        return self.values[max(self.values)] if self.values else None


class RunsInPrometheus:
    """The runs that a Prometheus has scraped; those of one name are one run.

    Args:
        url: of its HTTP API, without ``/api/v1``.

    Raises:
        ConfigError: if the URL is none, or holds a password.
    """

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_one = False
        if not is_one:
            raise ConfigError("--prometheus is no URL of a Prometheus. Give one as http://127.0.0.1:9090.")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ConfigError(
                "--prometheus must hold no user, password, query or fragment, for the state directory keeps it. Let "
                "Prometheus answer without them on this host, or name a proxy here that adds them."
            )
        self._url = url.rstrip("/")

    def check(self) -> None:
        """See whether it answers.

        Raises:
            ConfigError: if it does not.
        """
        try:
            self._ask("vector(1)")
        except OSError as error:
            raise ConfigError(f"{error}. Start it, or name another by --prometheus.") from None

    def runs(self, flag: str, since: float, known: Container[str]) -> list[RunHealth]:
        """See :class:`esper.evaluation.rollout.health.Source`."""
        now = time.time()
        window = f"[{math.ceil(max(now - since, 0) + _BEFORE_S)}s]"
        away = self._exporters(f"last_over_time(esper_exporter_bus_up{window})") - self._exporters(
            "esper_exporter_bus_up == 1"
        )
        scraped: dict[str, set[str]] = {}
        for labels, _ in self._ask(f'last_over_time(esper_flag{{flag="{flag}",run!="{_OTHER}"}}{window})'):
            scraped.setdefault(labels.get("run", ""), set()).add(labels.get("instance", ""))
        found = []
        for run, instances in scraped.items():
            if run in known:
                continue
            told = _health(run, self._series(run, flag, window), now)
            is_hidden = not told.is_finished and instances <= away
            if told.began >= since and not is_hidden:
                found.append(told)
        return sorted(found, key=lambda told: told.began)

    def close(self) -> None:
        """There is nothing to let go."""

    def _exporters(self, expression: str) -> set[str]:
        return {labels.get("instance", "") for labels, _ in self._ask(expression)}

    def _series(self, run: str, flag: str, window: str) -> dict[str, _Series]:
        name = json.dumps(run, ensure_ascii=False)
        found = {metric: _Series() for metric in (*_READ, *_EVENTS.values())}
        asked = (
            f'{{__name__=~"{"|".join(_READ)}",run={name},flag=~"|{flag}"}}{window}',
            f'esper_events_total{{event=~"{"|".join(_EVENTS)}",run={name}}}{window}',
        )
        for labels, values in (one for expression in asked for one in self._ask(expression)):
            series = found[_EVENTS.get(labels.get("event", ""), labels.get("__name__", ""))]
            if not series.values or max(values) > max(series.values):
                series.labels = labels
            for at, value in values.items():  # of several labels, as of faults by layer, the largest tells of trouble
                series.values[at] = max(value, series.values.get(at, value))
        return found

    def _ask(self, expression: str) -> list[tuple[dict[str, str], dict[float, float]]]:
        """The series of an answer: labels, and values by time.

        Raises:
            OSError: if there is no answer, or none that can be used.
        """
        try:
            body = urlencode({"query": expression}).encode()
            with urllib.request.urlopen(f"{self._url}/api/v1/query", body, timeout=_TIMEOUT_S) as answer:
                data = answer.read(_MOST_BYTES + 1)
            if len(data) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES:,} bytes")
            return [(one["metric"], _values(one)) for one in _result(json.loads(data))]
        except OSError as error:
            raise OSError(f"Prometheus at {self._url} does not answer: {error}") from None
        except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{self._url} does not answer as a Prometheus does: {error!r}") from None


def _result(answer: Any) -> list[dict[str, Any]]:
    if answer["status"] != "success":
        raise ValueError(answer["error"])
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def _values(one: dict[str, Any]) -> dict[float, float]:
    return {float(at): float(value) for at, value in one.get("values") or [one["value"]]}


def _health(run: str, series: dict[str, _Series], now: float) -> RunHealth:
    seen, flag = series[_SEEN].values, series["esper_flag"].values
    host = series["esper_run_info"].labels.get("host")
    parameters, steps = (series[name].last for name in ("esper_host_parameters", "esper_planned_steps"))
    known = [time for time in seen.values() if math.isfinite(time)]
    is_finished = series["esper_run_finished"].last == 1
    trouble = next((told for name, told in _TROUBLE.items() if any(series[name].values.values())), None)
    damage = _damage(series, now, is_finished=is_finished, may_lack_loss=trouble is not None)
    loss = series[_LOSS].last if is_finished else None
    return RunHealth(
        run=run,
        kind=f"{host} of {_whole(parameters)} parameters, {_whole(steps)} steps",
        is_on=series["esper_flag"].last == 1,
        began=min([*flag, *known], default=0.0),
        last=max(known or flag, default=0.0),
        points=() if damage else tuple(_points(series)),
        is_finished=is_finished,
        loss=loss if loss is not None and math.isfinite(loss) else None,
        trouble=trouble,
        damage=damage,
    )


def _whole(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f}"


def _points(series: dict[str, _Series]) -> Iterator[Point]:
    """Where the run stood whenever it had gone on, by its own clock, which no scrape makes late."""
    before = -1.0
    for at in sorted(series[_STEP].values):
        step, time = series[_STEP].values[at], series[_SEEN].values.get(at)
        if time is not None and step > before:
            before = step
            host, device = (series[name].values.get(at) for name in _HELD)
            yield Point(time, int(step), None if host is None else int(host + (device or 0)))


def _damage(series: dict[str, _Series], now: float, *, is_finished: bool, may_lack_loss: bool) -> str | None:
    """What of the numbers cannot be."""
    told = {name: list(series[name].values.values()) for name in (_SEEN, _STEP, "esper_flag", *_HELD)}
    for name, values in told.items():
        if wrong := [value for value in values if not (math.isfinite(value) and value >= 0)]:
            return f"{name} is {wrong[0]:g}"
    if not told[_SEEN] or not told[_STEP]:
        return "it does not tell its step, or when it told anything last"
    if len(set(told["esper_flag"])) != 1:
        return "it tells of the flag both on and off"
    if (ahead_s := max(told[_SEEN]) - now) > AHEAD_S:
        return f"it is from the future: {ahead_s:.0f} s from now"
    loss = series[_LOSS].last
    if is_finished and not may_lack_loss and (loss is None or not math.isfinite(loss)):
        return "it has finished, and its held-out loss is no number"
    return _fallen(series)


def _fallen(series: dict[str, _Series]) -> str | None:
    """Whether a step stays below what it was, though the run neither began again nor went back by itself."""
    if any(series["esper_rollbacks_total"].values.values()):
        return None
    steps, most, told = series[_STEP].values, (0.0, -1.0), dict.fromkeys(_EVENTS, 0.0)
    for at in sorted(steps):
        before, told = told, {kind: series[name].values.get(at, 0.0) for kind, name in _EVENTS.items()}
        has_begun = told["model"] > before["model"] or any(told[kind] < before[kind] for kind in told)
        time = series[_SEEN].values.get(at, at)
        if has_begun or steps[at] >= most[1]:
            most = time, steps[at]
        elif time - most[0] > _LATE_S:
            return f"its step fell from {most[1]:.0f} to {steps[at]:.0f}, and it did not begin again"
    return None
