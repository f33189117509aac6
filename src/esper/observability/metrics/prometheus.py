"""Metrics for Prometheus, over HTTP: the only place that knows its library."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from esper.contracts.errors import ConfigError
from esper.observability.metrics.catalogue import METRICS
from esper.observability.metrics.distribution import Distribution
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.series import Sample, samples

try:
    import prometheus_client
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    raise ConfigError("Metrics need prometheus-client: pip install 'esper-morphogenetic[metrics]'.") from error

LOOPBACK = "127.0.0.1"

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class Collector:
    """What Prometheus asks at every scrape.

    Args:
        read: gives all series of now.
    """

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def describe(self) -> list[Family]:
        """All metrics without values; a registry asks when it is given a collector."""
        return [_family(name) for name in METRICS]

    def collect(self) -> Iterator[Family]:
        """All metrics that have values now."""
        families: dict[str, Family] = {}
        for one in self._read():
            family = families.get(one.name) or families.setdefault(one.name, _family(one.name))
            if isinstance(family, HistogramMetricFamily):
                assert isinstance(one.value, Distribution)
                family.add_metric(one.labels, _buckets(one.value), one.value.sum)
            else:
                assert not isinstance(one.value, Distribution)
                family.add_metric(one.labels, one.value)
        yield from families.values()


class MetricsServer:
    """Serves ``/metrics`` from a thread of its own.

    Args:
        read: gives all series of now.
        port: to listen at; 0 takes a free one.
        host: address to listen at; loopback unless told, for what it tells has no password.

    Attributes:
        port: at which it listens.

    Raises:
        ConfigError: if the port is taken, or the address is none of this machine.
    """

    def __init__(self, read: Callable[[], Iterable[Sample]], port: int, host: str = LOOPBACK) -> None:
        registry = prometheus_client.CollectorRegistry()
        registry.register(Collector(read))
        try:
            self._server, self._thread = prometheus_client.start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"Metrics cannot be served at {host}:{port}: {error}. Name another port or address."
            ) from error
        self.port = self._server.server_port

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Metrics:
    """A listener of a session that shows its run to Prometheus.

    Give it to ``Session(on_event=...)`` or ``session.subscribe``, and :meth:`close` it at the end.

    Args:
        port: to serve ``/metrics`` at; 0 takes a free one.
        host: address to listen at.
        run: what the run is called.

    Attributes:
        state: what is known of the run.
        port: at which it serves.

    Raises:
        ConfigError: if the port is taken, or prometheus-client is not installed.
    """

    def __init__(self, port: int, host: str = LOOPBACK, run: str = "run") -> None:
        self._lock = threading.Lock()
        self.state = RunState(run)
        self._server = MetricsServer(self._read, port, host)
        self.port = self._server.port

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the run's log."""
        with self._lock:
            self.state.hear(line)

    def begin_with(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Know what a run that goes on from a checkpoint has told before, and nothing else."""
        with self._lock:
            self.state = RunState(self.state.run)
            for line in lines:
                self.state.hear(line)

    def close(self) -> None:
        """Serve no more."""
        self._server.close()

    def _read(self) -> list[Sample]:
        with self._lock:
            return samples([self.state])


def _family(name: str) -> Family:
    metric = METRICS[name]
    kind = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[metric.kind]
    return kind(name.removesuffix("_total"), metric.meaning, labels=metric.labels)


def _buckets(value: Distribution) -> list[tuple[str, int]]:
    """Cumulative counts, as Prometheus wants them."""
    total, found = 0, []
    for bound, count in zip((*map(str, value.bounds), "+Inf"), value.counts, strict=True):
        total += count
        found.append((bound, total))
    return found
