"""Time of short calls, on a CPU and on a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

Call = Callable[[], Any]


class Spread(NamedTuple):
    """Quartiles."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        low, middle, high = statistics.quantiles(values, n=4)
        return cls(low, middle, high)


def in_turns(calls: Mapping[str, Call], device: torch.device, block: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds of each call, by name: for every repeat the mean over a block of calls.

    They take turns in an order that turns round each time, so that a drift of the machine hits all alike. On a GPU time
    is that between two events of the stream, so what the processor does in time is free there.

    Args:
        calls: what to measure.
        device: where they work.
        block: calls of one repeat.
        repeats: measurements of each, at least two.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-2, repeats):  # two to warm up
        for name in list(calls) if repeat % 2 else reversed(list(calls)):
            took = (_on_gpu if device.type == "cuda" else _on_cpu)(calls[name], block)
            if repeat >= 0:
                times[name].append(took / block)
    return times


def graphed(call: Call) -> Call:
    """A CUDA graph of a call, to be replayed; keeps the call, whose tensors the graph reads."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(_: Call = call) -> None:
        graph.replay()

    return replay


def _on_cpu(call: Call, block: int) -> float:
    start = time.perf_counter()
    for _ in range(block):
        call()
    return 1e6 * (time.perf_counter() - start)


def _on_gpu(call: Call, block: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(block):
        call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end)
