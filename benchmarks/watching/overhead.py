"""What a run pays for being watched: its steps beside those of an equal run without any of it.

Both write a run directory, as every ``esper run`` does, in one process, and take turns step by step; their weights must
end with the same bytes. ``/metrics`` is read every second, traces go to a collector on this machine that forgets them,
TensorBoard writes its files. Times are wall clock, for an idle machine; what a scrape takes is counted in full, as if
training had to wait for it.
"""

import statistics
import threading
import time
import timeit
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bus.steps import digest
from esper.contracts.config import GrowthConfig
from esper.evaluation import growing as module
from esper.evaluation.growing import Growing, growing
from esper.evaluation.scoring import mean_loss
from esper.observability.metrics.prometheus import Metrics
from esper.observability.tracing import RunTracing, Traces, otlp
from esper.observability.tracking.following import Tracking
from esper.runtime.session import Session
from esper.tasks.catalogue import load_task
from esper.tasks.task import Precision

SCRAPED_EVERY_S = 1.0


@contextmanager
def metrics(session: Session) -> Iterator[None]:
    """Metrics for Prometheus, which asks every second."""
    shown, ending = Metrics(0), threading.Event()
    shown.begin_with(session.events)
    session.subscribe(shown)

    def scrape() -> None:
        while not ending.wait(SCRAPED_EVERY_S):
            urllib.request.urlopen(f"http://127.0.0.1:{shown.port}/metrics").read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    yield
    ending.set()
    thread.join()
    shown.close()


class _Collector(BaseHTTPRequestHandler):
    """Takes traces and forgets them."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def traces(session: Session) -> Iterator[None]:
    """Spans, sent by OTLP."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracing = RunTracing(Traces(otlp(f"http://127.0.0.1:{server.server_port}"), "overhead", print), "overhead")
        tracing.follow(session.events)
        session.subscribe(tracing)
        yield
        assert tracing.close(), "the collector did not take all spans"
        server.shutdown()


@contextmanager
def tensorboard(session: Session) -> Iterator[None]:
    """Scalars, histograms of what seeds sense, texts."""
    with TemporaryDirectory() as folder:
        tracking = Tracking("tensorboard", Path(folder), tell=print)
        tracking.follow(session)
        yield
        tracking.close()


WATCHERS = (metrics, traces, tensorboard)
"""All that may be on."""


def work(seconds: float) -> Callable[[], object]:
    """Something that takes about so long, of a fixed amount."""
    matrix = torch.rand(256, 256)

    def once() -> Tensor:
        return matrix @ matrix

    each = timeit.timeit(once, number=200) / 200
    times = round(seconds / each)

    def spend() -> None:
        for _ in range(times):
            once()

    return spend


def compared(epochs: int, seconds: float, steps: int | None = None) -> dict[str, Any]:
    """How much longer a watched run takes.

    Args:
        epochs: of each run.
        seconds: that a step takes at least.
        steps: of an epoch; None goes through all samples.

    Returns:
        ``step``, the median over all pairs of steps of how much longer the watched one took, as a share, with
        ``quartiles``; ``boundary_ms``, the median of what a boundary took longer; ``scrapes``, the share of a second
        that one scrape takes; ``share``, all together over an epoch, of what it takes alone; ``step_ms``, a step alone.
    """
    spend = work(seconds) if seconds else None

    def loss(model: nn.Module, batch: Any, precision: Precision) -> Tensor:
        if spend is not None:
            spend()
        return mean_loss(model, batch, precision)

    def run(directory: str) -> Growing:
        return growing(
            load_task("digits", 0, "mlp"),
            GrowthConfig(),
            epochs=epochs,
            batch_size=32,
            lr=5e-3,
            schedule="cosine",
            seed=0,
            steps_per_epoch=steps,
            directory=Path(directory),
        )

    with ExitStack() as stack:
        before, module.mean_loss = module.mean_loss, loss  # type: ignore[assignment]
        try:
            watched, alone = (run(stack.enter_context(TemporaryDirectory())) for _ in range(2))
        finally:
            module.mean_loss = before
        for watcher in WATCHERS:
            stack.enter_context(watcher(watched.session))
        watched_s, alone_s, boundaries_s = [], [], []
        for number in range(epochs):
            for batches in zip(watched.loader, alone.loader, strict=True):

                def step(growth: Growing, at: int, batches: Any = batches) -> None:
                    growth.session.step(batches[at])

                pair = paired((watched, alone), step, len(alone_s) % 2)
                watched_s.append(pair[0])
                alone_s.append(pair[1])
            boundaries_s.append(paired((watched, alone), lambda growth, at: growth.session.after_epoch(), number % 2))
        scrapes = scrape_s(watched) / SCRAPED_EVERY_S
        for growth in (watched, alone):
            growth.session.finish()
        assert digest(watched) == digest(alone), "watching has changed the run"
    low, middle, high = statistics.quantiles([a / b - 1 for a, b in zip(watched_s, alone_s, strict=True)], n=4)
    boundary = statistics.median(one[0] - one[1] for one in boundaries_s)
    per_epoch, step_s = len(alone_s) / epochs, statistics.median(alone_s)
    whole = per_epoch * step_s + statistics.median(one[1] for one in boundaries_s)
    return {
        "share": round((per_epoch * middle * step_s + boundary) / whole + scrapes, 5),
        "scrapes": round(scrapes, 5),
        "step": round(middle, 5),
        "quartiles": [round(low, 4), round(high, 4)],
        "boundary_ms": round(1e3 * boundary, 3),
        "step_ms": round(1e3 * step_s, 3),
        "steps_of_an_epoch": round(per_epoch),
        "pairs": len(alone_s),
    }


def scrape_s(watched: Growing) -> float:
    """CPU seconds of what a scrape of this run takes."""
    shown = Metrics(0)
    shown.begin_with(watched.session.events)
    start = time.process_time()
    for _ in range(20):
        urllib.request.urlopen(f"http://127.0.0.1:{shown.port}/metrics").read()
    seconds = (time.process_time() - start) / 20
    shown.close()
    return seconds


def markdown(found: Mapping[str, Any]) -> str:
    """The table of what :func:`measure` has found."""
    columns = ("step", "scrapes", "share")
    rows = [
        f"| {name} | {one['step_ms']:g} ms | {one['boundary_ms']:+.2f} ms | "
        + " | ".join(f"{one[what]:+.2%}" for what in columns)
        + " |"
        for name, one in found.items()
        if name != "counting"
    ]
    head = [
        "| run | a step alone | a boundary watched | a step watched | scrapes | a whole epoch |",
        "|---|---|---|---|---|---|",
    ]
    counted = found["counting"]
    said = f"Counting a step takes {counted['step_us']:g} us, a line `vitals` {counted['vitals_ms']:g} ms."
    return "\n".join([*head, *rows, "", said])


def paired(both: tuple[Growing, Growing], do: Callable[[Growing, int], object], first: int) -> tuple[float, float]:
    """Seconds that the same takes in either run; ``first`` goes first."""
    seconds = [0.0, 0.0]
    for at in (first, 1 - first):
        start = time.perf_counter()
        do(both[at], at)
        seconds[at] = time.perf_counter() - start
    return seconds[0], seconds[1]


def counting() -> dict[str, float]:
    """Microseconds that a step pays for being counted, and milliseconds of a line ``vitals`` of a run of six places."""
    growth = growing(
        load_task("digits", 0, "mlp"),
        GrowthConfig(),
        epochs=1,
        batch_size=32,
        lr=5e-3,
        schedule="cosine",
        seed=0,
        on_event=lambda line: None,
    )
    pulse = growth.session._run.pulse

    def counted() -> None:
        pulse.beat(1, time.perf_counter())
        pulse.write_if_due(None)

    step_us = min(timeit.repeat(counted, number=10_000, repeat=5)) / 10_000 * 1e6
    vitals_ms = min(timeit.repeat(lambda: pulse.write(1), number=100, repeat=5)) / 100 * 1e3
    return {"step_us": round(step_us, 3), "vitals_ms": round(vitals_ms, 4)}


def measure(epochs: int = 60, slow_epochs: int = 12) -> dict[str, Any]:
    """Steps of the digits as they are, and steps of 50 ms."""
    torch.set_num_threads(1)
    return {
        "counting": counting(),
        "the digits": compared(epochs, 0.0),
        "steps of 50 ms": compared(slow_epochs, 0.05, steps=20),
    }
