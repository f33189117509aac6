"""What a run pays for being on a bus: seconds of its steps, with the broker well, away, hung and without memory.

Each is a growing run on the digits in a process of its own, in turn; weights must end with the same bytes.
"""

import hashlib
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.bus.brokers import redis_server
from benchmarks.bus.load import CONTEXT
from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.runtime.link.link import Link
from esper.tasks.catalogue import load_task

MODES = (
    "off",
    "on",
    "down from the start",
    "killed in the middle",
    "hung from the start",
    "hung in the middle",
    "full",
)
EPOCHS = 100
HANGS_S = 30.0


def run(url: str | None, mode: str, pid: int | None, result: Any) -> None:
    """One run; tells seconds of its steps and of the processor in all its threads meanwhile, its weights and counts."""
    torch.set_num_threads(1)
    task = load_task("digits", 0, "mlp")
    link = None if url is None else Link(url, "bench")
    growth = growing(
        task,
        GrowthConfig(),
        epochs=EPOCHS,
        batch_size=32,
        lr=5e-3,
        schedule="cosine",
        seed=0,
        on_event=link,
    )
    if link is not None:
        link.follow(growth.session)
    seconds = processor_seconds = 0.0
    for epoch in range(EPOCHS):
        if pid is not None and epoch == EPOCHS // 3:
            trouble(mode, pid)
        for batch in growth.loader:
            start, processor_start = time.perf_counter(), time.process_time()
            growth.session.step(batch)
            seconds += time.perf_counter() - start
            processor_seconds += time.process_time() - processor_start
        growth.session.after_epoch()
    growth.session.finish()
    weights = b"".join(tensor.numpy().tobytes() for tensor in growth.model.state_dict().values())
    counts: dict[str, Any] = {}
    if link is not None:
        start = time.perf_counter()
        counts = {"all_published": link.close(within_s=2.0), "close_s": round(time.perf_counter() - start, 2)}
        statistics_ = link.publisher.statistics
        counts |= {name: getattr(statistics_, name) for name in ("published", "dropped", "failures")}
    result.put((seconds, processor_seconds, hashlib.sha256(weights).hexdigest()[:16], counts))
    result.close()
    result.join_thread()
    os._exit(0)  # threads that hang with the broker are not waited for


def trouble(mode: str, pid: int) -> None:
    """What happens to the broker in the middle of the run."""
    if mode == "killed in the middle":
        os.kill(pid, signal.SIGKILL)
    elif mode == "hung in the middle":
        hang(pid)


def hang(pid: int) -> None:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    later = threading.Timer(HANGS_S, os.kill, [pid, signal.SIGCONT])
    later.daemon = True
    later.start()


@contextmanager
def broker(mode: str) -> Iterator[tuple[str | None, int | None]]:
    """URL and process id of a broker for a mode."""
    if mode == "off":
        yield None, None
        return
    with tempfile.TemporaryDirectory() as folder, redis_server(folder, full=mode == "full") as (url, process):
        if mode == "down from the start":
            process.kill()
            process.wait()
        if mode == "hung from the start":
            os.kill(process.pid, signal.SIGSTOP)
        try:
            yield url, process.pid
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)


def _ratios(some: list[float], others: list[float]) -> list[float]:
    """Of runs next to each other, from the lowest on; the middle one is the median."""
    return sorted(round(one / other, 4) for one, other in zip(some, others, strict=True))


def measure(repeats: int) -> dict[str, Any]:
    """Seconds of all modes, in turn, and their ratios to the run that is on no bus."""
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    processor: dict[str, list[float]] = {mode: [] for mode in MODES}
    digests: set[str] = set()
    counts: dict[str, Any] = {}
    for _ in range(repeats):
        for mode in MODES:
            with broker(mode) as (url, pid):
                result = CONTEXT.Queue()
                process = CONTEXT.Process(target=run, args=(url, mode, pid, result))
                process.start()
                taken, worked, digest, counts[mode] = result.get(timeout=600)
                process.join()
            seconds[mode].append(taken)
            processor[mode].append(worked)
            digests.add(digest)
    assert len(digests) == 1, digests
    table = {}
    for mode in MODES:
        table[mode] = {
            "median_s": round(statistics.median(seconds[mode]), 3),
            "ratios": _ratios(seconds[mode], seconds["off"]),
            "processor_median_s": round(statistics.median(processor[mode]), 3),
            "processor_ratios": _ratios(processor[mode], processor["off"]),
            **counts[mode],
        }
    return {"epochs": EPOCHS, "repeats": repeats, "weights": digests.pop(), "modes": table}
