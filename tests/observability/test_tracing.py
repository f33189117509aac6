"""Spans on their way to a collector: the real exporter, over HTTP."""

import socket
import subprocess
import sys
import time

import pytest

from esper.contracts.commands import Handled
from esper.contracts.errors import ConfigError
from esper.observability.spans import trace_id
from esper.observability.tracing import RunTracing, Traces, otlp
from tests.collector import Collector, Seen, collecting, faults_of
from tests.observability.test_spans import LINES, RUN

HEADERS = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def collector():
    with collecting() as found:
        yield found


def shifted(lines, by):
    return [line | {"time": line["time"] + by} for line in lines]


def told(url: str, tell=lambda text: None) -> bool:
    """A whole run; gives whether it was taken."""
    tracing = RunTracing(Traces(otlp(url), "esper-run", tell), RUN)
    lines = shifted(LINES, time.time())
    tracing.follow(lines[:1])
    for line in lines[1:]:
        tracing(line)
    return tracing.close(within_s=2.0)


def handled(**fields) -> Handled:
    now = time.time()
    about = {"command_id": "c", "who": "me", "accepted": True, "reason": "", "received": now, "answered": now + 0.1}
    return Handled(**about | {"headers": {}} | fields)


class TestARun:
    def test_is_one_tree_over_the_wire(self, collector):
        assert told(collector.url)
        assert faults_of(collector.spans) == []
        assert len(collector.spans) == 11
        (run,) = collector.named("run")
        assert run.trace == trace_id(RUN)
        assert (run.service, run.status, run.attributes["esper.run"]) == ("esper-run", 1, RUN)
        assert run.seconds == pytest.approx(6.2)

    def test_follows_the_environment(self, collector, monkeypatch):
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        assert told(collector.url)
        assert {one.service for one in collector.spans} == {"mine"}
        assert {one["authorization"] for one in collector.headers} == {"secret"}

    @pytest.mark.parametrize(("name", "value"), [("OTEL_TRACES_SAMPLER", "always_off"), ("OTEL_SDK_DISABLED", "true")])
    def test_can_be_left_out_by_the_environment(self, collector, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        assert told(collector.url)
        assert collector.spans == []

    def test_that_is_not_sampled_says_so_to_others(self, collector, monkeypatch):
        for sampler, flags in {"always_on": "01", "always_off": "00"}.items():
            monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
            tracing = RunTracing(Traces(otlp(collector.url), "esper-run"), RUN)
            assert tracing.headers["traceparent"].endswith(f"-{flags}")
            tracing.close()

    def test_goes_on_with_its_trace(self, collector):
        """The second process begins where the first was killed, with what the checkpoint knew."""
        begun = time.time() - 4.05
        lines = shifted(LINES, begun)
        cut = next(number for number, line in enumerate(lines) if line["time"] > begun + 4.05)
        first = RunTracing(Traces(otlp(collector.url), "first"), RUN)
        first._since = 0.0  # it began with the run
        first.follow(lines[:cut])
        first._traces.close()
        second = RunTracing(Traces(otlp(collector.url), "second"), RUN)
        second.follow(lines[:cut])
        for line in lines[cut:]:
            second(line)
        assert second.close()
        assert faults_of(collector.spans) == []
        assert len(collector.spans) == 11
        assert {one.service for one in collector.spans} == {"first", "second"}


class TestCommands:
    def one(self, collector: Collector, **fields) -> tuple[Seen, Seen, dict]:
        tracing = RunTracing(Traces(otlp(collector.url), "esper-run"), RUN)
        tracing.follow(shifted(LINES, time.time()))
        ids = tracing.handled(handled(**fields))
        assert tracing.close()
        (command,) = collector.named("command")
        (run,) = collector.named("run")
        assert ids == {"trace_id": command.trace, "span_id": command.id}
        return command, run, ids

    @pytest.mark.parametrize("headers", [{}, {"traceparent": "noise"}, {"traceparent": f"00-{'0' * 32}-1-01"}])
    def test_of_unknown_senders_are_part_of_the_run(self, collector, headers):
        command, run, _ = self.one(collector, headers=headers)
        assert command.parent == run.id
        assert faults_of(collector.spans) == []

    def test_are_part_of_their_senders_and_linked_to_the_run(self, collector):
        command, run, _ = self.one(collector, headers=HEADERS)
        assert HEADERS["traceparent"] == f"00-{command.trace}-{command.parent}-01"
        assert command.links == [(run.trace, run.id)]

    def test_of_decisions_are_part_of_the_run_and_linked_to_the_decision(self, collector):
        command, run, _ = self.one(collector, headers=HEADERS, is_decision=True)
        assert (command.trace, command.parent) == (run.trace, run.id)
        assert [HEADERS["traceparent"]] == [f"00-{of}-{one}-01" for of, one in command.links]


def test_a_decision_is_part_of_the_run_that_asks(collector):
    traces = Traces(otlp(collector.url), "esper-tamiyo")
    with traces.around("decision", HEADERS, run=RUN) as further:
        pass
    assert traces.close()
    (decision,) = collector.spans
    assert HEADERS["traceparent"] == f"00-{decision.trace}-{decision.parent}-01"
    assert further == {"traceparent": f"00-{decision.trace}-{decision.id}-01"}


class TestACollectorThatDoesNot:
    @pytest.mark.parametrize("status", [404, 401])
    def test_take_spans_is_told_once(self, status, caplog):
        said: list[str] = []
        with collecting(status) as collector:
            traces = Traces(otlp(collector.url), "esper-run", said.append)
            for _ in range(3):
                with traces.around("decision", {}):
                    pass
                traces._provider.force_flush()
            assert not traces.close()
        assert len(said) == 1
        assert f"code: {status}" in said[0]
        assert caplog.records == []

    def test_listen_is_told_once_and_not_waited_for(self, caplog):
        said: list[str] = []
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            began = time.monotonic()
            assert not told(url, said.append)
        assert time.monotonic() - began < 6.0
        assert len(said) == 1
        assert said[0].startswith("Traces are not taken by their collector")
        assert caplog.records == []

    def test_answer_is_not_waited_for(self):
        said: list[str] = []
        with socket.socket() as hung:
            hung.bind(("127.0.0.1", 0))
            hung.listen()
            began = time.monotonic()
            assert not told(f"http://127.0.0.1:{hung.getsockname()[1]}", said.append)
        assert time.monotonic() - began < 6.0
        assert len(said) == 1


@pytest.mark.parametrize("url", ["collector", "http://", "ftp://here", "http://user:secret@here:port", "http://[x"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError, match="must be like http://127") as refused:
        otlp(url)
    assert "secret" not in str(refused.value)


def test_a_missing_library_names_the_extra():
    code = "import sys; sys.modules['opentelemetry'] = None\nimport esper.observability.tracing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'esper-morphogenetic[tracing]'" in done.stderr.splitlines()[-1]
