"""Sends spans to a collector, over OTLP: those of a run, which is a listener's work, and those of a controller."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from esper.contracts.commands import Handled
from esper.contracts.errors import ConfigError
from esper.observability.span_tree import Spans
from esper.observability.spans import COMMAND, RUN, Line, Span, span_id, told, trace_id

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise ConfigError(f"Traces need {error.name}: pip install 'esper-morphogenetic[tracing]'.") from error

PATH = "/v1/traces"
"""Where a collector takes spans, unless its URL says otherwise."""

_W3C = TraceContextTextMapPropagator()


def otlp(url: str) -> SpanExporter:
    """To a collector that speaks OTLP over HTTP; headers, timeout, compression and certificates by the variables
    ``OTEL_EXPORTER_OTLP_*`` of the environment.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``, with a path if that is not :data:`PATH`.

    Raises:
        ConfigError: if it is no such URL.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 4318) > 0
    except ValueError:
        is_url = False
    if not is_url:
        shown = url.rpartition("@")[2]  # without a password
        raise ConfigError(f"The URL of the collector of traces must be like http://127.0.0.1:4318, not {shown!r}.")
    return OTLPSpanExporter(endpoint=url if parts.path.strip("/") else parts._replace(path=PATH).geturl())


class Traces:
    """A way out for spans, in a thread of its own. Sampling, limits, batches and the resource follow the variables
    ``OTEL_*`` of the environment.

    Args:
        exporter: takes them, see :func:`otlp`.
        service: what this process is called, unless the environment says otherwise.
        tell: called, perhaps by another thread, with a sentence if they are not taken: once, until they are again.
    """

    def __init__(self, exporter: SpanExporter, service: str, tell: Callable[[str], None] = lambda text: None) -> None:
        self._exporter, self._tell, self._ids = _Telling(exporter, tell), tell, _Ids()
        resource = Resource.create({"service.name": service}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("esper")

    def flags(self, trace: int) -> int:
        """1 if a trace is sampled, else 0."""
        sampled = self._provider.sampler.should_sample(None, trace, RUN).decision.is_sampled()
        return int(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)

    def send(self, span: Span, here: SpanContext, parent: SpanContext | None, links: Sequence[SpanContext]) -> None:
        """Hand on a span that is over.

        Args:
            span: the span.
            here: its own identity.
            parent: that of the span of which it is a part.
            links: of spans that it is about.
        """
        around = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        with self._ids.given(here):
            sent = self._tracer.start_span(
                span.kind,
                context=around,
                kind=SpanKind.CONSUMER if span.kind == COMMAND else SpanKind.INTERNAL,
                attributes=span.attributes,
                links=[Link(one) for one in links],
                start_time=_ns(span.begin),
            )
        for moment in span.moments:
            sent.add_event(moment.name, moment.attributes, _ns(moment.time))
        if span.error is not None:
            sent.set_status(StatusCode.ERROR, span.error)
        elif span.is_well:
            sent.set_status(StatusCode.OK)
        sent.end(_ns(span.end))

    @contextmanager
    def around(self, name: str, headers: Mapping[str, str], **attributes: Any) -> Iterator[Mapping[str, str]]:
        """A span of this process's own, around what is done inside.

        Args:
            name: of the span.
            headers: of the message that asked for it; its sender's span is the parent.
            attributes: of the span, without ``esper.`` before their names.

        Returns:
            Headers for the messages that come of it.
        """
        asked = _W3C.extract(headers)
        with self._tracer.start_as_current_span(name, asked, SpanKind.CONSUMER, told(attributes)):
            further: dict[str, str] = {}
            _W3C.inject(further)
            yield further

    def close(self, within_s: float = 5.0) -> bool:
        """Send what waits, as far as it is taken in time.

        Returns:
            Whether all of it was taken since the last that was not.
        """
        ending = threading.Thread(target=self._provider.shutdown, name="esper-traces", daemon=True)
        ending.start()
        ending.join(within_s)
        is_late = ending.is_alive()
        if is_late:
            self._exporter.give_up()
        return not (is_late or self._exporter.has_failed)


class RunTracing:
    """A listener of a session that tells its run as one trace.

    Give it to ``Session(on_event=...)``, let it :meth:`follow` the session, and :meth:`close` it at the end. Nothing is
    told before it follows.

    Args:
        traces: where spans go.
        run_id: of the run; one that is resumed has the same, and goes on with its trace.
    """

    def __init__(self, traces: Traces, run_id: str) -> None:
        self._traces, self._run_id = traces, run_id
        self._trace = int(trace_id(run_id), 16)
        self._flags = TraceFlags(traces.flags(self._trace))
        self._spans = Spans(run_id)
        self._since, self._follows = round(time.time(), 3), False

    @property
    def headers(self) -> Mapping[str, str]:
        """For messages of the run: who gets one can make his spans parts of the run's."""
        return {"traceparent": f"00-{self._trace:032x}-{span_id(self._run_id, RUN)}-{int(self._flags):02x}"}

    def follow(self, events: Sequence[Line]) -> None:
        """Begin to tell. Call it once a checkpoint has been loaded.

        Args:
            events: all that has happened in the run, ``session.events``; what an earlier process has told is not told
                again, but what was under way then goes on.
        """
        self._follows = True
        for line in events:
            ended = self._spans(line)
            if line["time"] >= self._since:
                self._send(ended)

    def __call__(self, line: Line) -> None:
        """Take a line of the run's log."""
        if self._follows:
            self._send(self._spans(line))

    def handled(self, handled: Handled) -> Mapping[str, str]:
        """Tell of a command that came from elsewhere: a part of its sender's span, if that is known, else of the run.
        One of a decision is a part of the run, and linked to the decision, which is over by then.

        Returns:
            ``trace_id`` and ``span_id``.
        """
        run = self._context(span_id(self._run_id, RUN))
        sender = trace.get_current_span(_W3C.extract(handled.headers)).get_span_context()
        parent, links = (sender, [run]) if sender.is_valid else (run, [])
        if handled.is_decision:
            parent, links = run, [sender] if sender.is_valid else []
        about = {"run": self._run_id, "command": handled.command_id, "who": handled.who, "accepted": handled.accepted}
        span = Span(
            kind=COMMAND,
            id=span_id(self._run_id, COMMAND, handled.command_id),
            parent=f"{parent.span_id:016x}",
            begin=handled.received,
            end=handled.answered,
            attributes=told(about | {"reason": handled.reason}),
        )
        here = self._context(span.id, parent.trace_id)
        self._spans.reach(handled.answered)
        self._traces.send(span, here, parent, links)
        return {"trace_id": f"{here.trace_id:032x}", "span_id": span.id}

    def close(self, error: str | None = None, within_s: float = 5.0) -> bool:
        """End the run's span and all that are open, and send what waits.

        Args:
            error: what the run failed by; None if it is finished, or was interrupted and may go on.
            within_s: how long that may take.

        Returns:
            Whether all was taken.
        """
        self._send(self._spans.close(time.time(), error))
        return self._traces.close(within_s)

    def _send(self, spans: Sequence[Span]) -> None:
        for span in spans:
            parent = None if span.parent is None else self._context(span.parent)
            self._traces.send(span, self._context(span.id), parent, [self._context(link) for link in span.links])

    def _context(self, span: str, of_trace: int | None = None) -> SpanContext:
        return SpanContext(of_trace or self._trace, int(span, 16), False, self._flags)


class _Ids(RandomIdGenerator):
    """Gives the ids of a span that has some already; any to the others."""

    def __init__(self) -> None:
        self._given = threading.local()

    @contextmanager
    def given(self, here: SpanContext) -> Iterator[None]:
        self._given.context = here
        try:
            yield
        finally:
            self._given.context = None

    def generate_span_id(self) -> int:
        here = getattr(self._given, "context", None)
        return super().generate_span_id() if here is None else here.span_id

    def generate_trace_id(self) -> int:
        here = getattr(self._given, "context", None)
        return super().generate_trace_id() if here is None else here.trace_id


class _Telling(SpanExporter):
    """Says once that spans are not taken, where the SDK's own exporter would log every time."""

    def __init__(self, exporter: SpanExporter, tell: Callable[[str], None]) -> None:
        self._exporter, self._tell = exporter, tell
        self.has_failed = self._is_given_up = False
        self._log, self._heard = logging.getLogger(type(exporter).__module__), _Heard(logging.ERROR)
        self._log.addHandler(self._heard)
        self._log.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.has_failed = False
        else:
            self.fail()
        return result

    def fail(self) -> None:
        """Say so, unless it was said."""
        if not self.has_failed:
            self.has_failed = True
            told = f"Traces are not taken by their collector, and are dropped until they are. {self._heard.reason}"
            self._tell(told.strip())

    def give_up(self) -> None:
        """Let what is on its way be lost."""
        self._is_given_up = True
        self._exporter.shutdown()
        self.fail()

    def shutdown(self) -> None:
        if not self._is_given_up:
            self._exporter.shutdown()
        self._log.removeHandler(self._heard)
        self._log.propagate = not self._log.handlers


class _Heard(logging.Handler):
    """Keeps the last error that was logged."""

    reason = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.reason = record.getMessage()


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
