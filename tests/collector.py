"""A collector of traces for tests: takes what OTLP over HTTP brings, in memory."""

import gzip
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Seen:
    """A span as it came over the wire; times in nanoseconds, ids in hexadecimal digits."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    moments: list[tuple[str, int]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / 1e9


class Collector:
    """What has come."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Seen] = []
        self.headers: list[dict[str, str]] = []

    def take(self, raw: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            for one in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Seen(
                        service,
                        one.name,
                        one.trace_id.hex(),
                        one.span_id.hex(),
                        one.parent_span_id.hex(),
                        one.start_time_unix_nano,
                        one.end_time_unix_nano,
                        _values(one.attributes),
                        [(event.name, event.time_unix_nano) for event in one.events],
                        [(link.trace_id.hex(), link.span_id.hex()) for link in one.links],
                        one.status.code,
                    )
                )

    def named(self, name: str) -> list[Seen]:
        return [one for one in self.spans if one.name == name]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """One that answers every request with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            collector.headers.append(dict(self.headers))
            if status == 200 and self.path == "/v1/traces":
                collector.take(gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw)
            self.send_response(status if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def faults_of(spans: list[Seen]) -> list[str]:
    """What is wrong with spans that are to be one tree: several traces or roots, orphans, one id twice, children that
    are not within their parents, epochs that do not add up to the run, arms that take longer than their round."""
    faults, by_id = [], {one.id: one for one in spans}
    if len({one.trace for one in spans}) != 1:
        faults.append("not one trace")
    if len(by_id) != len(spans):
        faults.append("one id twice")
    if [one.name for one in spans if not one.parent] != ["run"]:
        faults.append("not one root")
    for one in spans:
        parent = by_id.get(one.parent)
        if one.end < one.begin:
            faults.append(f"{one.name} ends before it begins")
        if one.parent and parent is None:
            faults.append(f"{one.name} is an orphan")
        if parent is not None and not parent.begin <= one.begin <= one.end <= parent.end:
            faults.append(f"{one.name} is not within {parent.name}")
    for link in (link for one in spans for link in one.links):
        if link[1] not in by_id:
            faults.append("a link leads nowhere")
    epochs = sorted((one for one in spans if one.name == "epoch"), key=lambda one: one.begin)
    if epochs and epochs[0].begin != by_id.get(epochs[0].parent, epochs[0]).begin:
        faults.append("the first epoch does not begin with the run")
    if any(before.end != after.begin for before, after in itertools.pairwise(epochs)):
        faults.append("epochs leave gaps")
    return faults
