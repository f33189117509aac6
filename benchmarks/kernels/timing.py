"""Time on a GPU."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch


def graphed(call: Callable[[], Any]) -> Callable[[], Any]:
    """A CUDA graph of a call, to be replayed.

    Args:
        call: what it captures; called a few times before.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def in_turns(calls: Mapping[str, Callable[[], Any]], block: int, repeats: int) -> dict[str, list[float]]:
    """Microseconds of each call, by name: for every repeat the mean over a block of them; they take turns.

    Args:
        calls: what to measure.
        block: calls of one repeat.
        repeats: measurements of each.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(block):
                call()
            end.record()
            end.synchronize()
            if repeat:  # the first only warms up
                times[name].append(1000 * start.elapsed_time(end) / block)
    return times


def told(times: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"us": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}
