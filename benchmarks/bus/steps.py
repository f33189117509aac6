"""What a run pays for being on a bus: its steps beside those of an equal run that is on none, epoch by epoch.

The broker is well, away, hung or without memory; weights must end with the same bytes.
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
from esper.evaluation.growing import Growing, growing
from esper.runtime.link.link import Link
from esper.tasks.catalogue import load_task

MODES = (
    "on",
    "down from the start",
    "killed in the middle",
    "hung from the start",
    "hung in the middle",
    "full",
)
EPOCHS = 120
HANGS_S = 30.0


def session(link: Link | None) -> Growing:
    """A growing run on the digits."""
    task, config = load_task("digits", 0, "mlp"), GrowthConfig()
    growth = growing(task, config, epochs=EPOCHS, batch_size=32, lr=5e-3, schedule="cosine", seed=0, on_event=link)
    if link is not None:
        link.follow(growth.session)
    return growth


def epoch(growth: Growing) -> float:
    """Seconds of the steps of one epoch, the first one left out, and its boundary behind them."""
    seconds = []
    for batch in growth.loader:
        start = time.perf_counter()
        growth.session.step(batch)
        seconds.append(time.perf_counter() - start)
    growth.session.after_epoch()
    return statistics.median(seconds[1:])


def run(url: str, mode: str, pid: int, result: Any) -> None:
    """Two equal runs that take turns in one process, one on the bus; tells ratios of their steps, weights and counts.

    Each makes two epochs in a row. The second is measured: what its first one told is published meanwhile.
    """
    torch.set_num_threads(1)
    link = Link(url, "bench")
    linked, alone = session(link), session(None)
    ratios = []
    for number in range(0, EPOCHS, 2):
        if number == EPOCHS // 4:
            trouble(mode, pid)
        epoch(linked)
        with_bus = epoch(linked)
        time.sleep(0.05)
        epoch(alone)
        ratios.append(with_bus / epoch(alone))
    for growth in (linked, alone):
        growth.session.finish()
    assert digest(linked) == digest(alone), "the bus has changed the run"
    start = time.perf_counter()
    counts: dict[str, Any] = {"all_published": link.close(within_s=2.0)}
    counts["seconds_to_close"] = round(time.perf_counter() - start, 2)
    counted = link.publisher.statistics
    counts |= {name: getattr(counted, name) for name in ("published", "dropped", "failures")}
    result.put((ratios, digest(linked), counts))
    result.close()
    result.join_thread()
    os._exit(0)  # threads that hang with the broker are not waited for


def digest(growth: Growing) -> str:
    """Of all weights."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in growth.model.state_dict().values())
    return hashlib.sha256(weights).hexdigest()[:16]


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
def broker(mode: str) -> Iterator[tuple[str, int]]:
    """URL and process id of a broker for a mode."""
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


def measure() -> dict[str, Any]:
    """How much longer steps take on a bus, in every mode: the median of pairs of epochs, and their quartiles."""
    table, digests = {}, set()
    for mode in MODES:
        with broker(mode) as (url, pid):
            result = CONTEXT.Queue()
            process = CONTEXT.Process(target=run, args=(url, mode, pid, result))
            process.start()
            ratios, weights, counts = result.get(timeout=600)
            process.join()
        low, middle, high = (round(one, 4) for one in statistics.quantiles(ratios, n=4))
        table[mode] = {"ratio": middle, "quartiles": [low, high], "pairs": len(ratios), **counts}
        digests.add(weights)
        print(mode, table[mode], flush=True)
    assert len(digests) == 1, digests
    return {"epochs": EPOCHS, "weights": digests.pop(), "modes": table}
