"""``python -m benchmarks.dormant``: time and memory of a Linear(1024, 1024) with 1000 dormant seeds, on the CPU.

One forward pass in eight is looked at, so a single call says nothing: a repeat is the mean over a block of calls. Bare
layer, wrapped layer and a second bare layer take turns; the second one shows what the machine's noise alone would give.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import esper
from benchmarks.machine import machine

RESULT = Path(__file__).parent.parent / "results" / "dormant" / "cpu.json"
CHANNELS, BATCH, SEEDS = 1024, 256, 1000
MOST_OVERHEAD, MOST_BYTES, MOST_SHARE = 0.05, 100_000, 0.02  # the targets of the specification
BLOCK = 16  # calls of one repeat: two looks in nearly every one


def main() -> None:
    """Measure, print, write ``cpu.json``."""
    options = _parser().parse_args()
    torch.manual_seed(0)
    bare, other = (nn.Linear(CHANNELS, CHANNELS) for _ in range(2))
    config = esper.GrowthConfig(layers={"0": SEEDS}, telemetry_rows=options.rows)
    model = esper.wrap(nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.ReLU()), config)
    wrapped = model.get_submodule("0")
    layers = {"bare": bare, "wrapped": wrapped, "bare again": other}
    state_bytes = sum(buffer.nbytes for buffer in wrapped.buffers())
    host_bytes = sum(parameter.nbytes for parameter in bare.parameters())
    share = state_bytes / host_bytes
    print(
        f"Linear({CHANNELS}, {CHANNELS}), {SEEDS} dormant seeds, batch {BATCH}, {config.telemetry_rows} vectors a look"
    )
    print(f"state: {state_bytes} bytes, {share:.2%} of the host's ({_verdict(state_bytes, MOST_BYTES)}: under ", end="")
    print(f"{MOST_BYTES}; {_verdict(share, MOST_SHARE)}: under {MOST_SHARE:.0%})")

    figures = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for what, run in {"forward": _forward, "forward + backward": _forward_backward}.items():
            figure = {"threads": threads, "what": what, **_measure(layers, run, options.repeats)}
            figures.append(figure)
            print(_line(figure), flush=True)
    setting = {"channels": CHANNELS, "batch": BATCH, "seeds": SEEDS, "rows": config.telemetry_rows, "block": BLOCK}
    result: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "setting": setting | {"repeats": options.repeats},
        "state_bytes": state_bytes,
        "share_of_host": share,
        "figures": figures,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


def _forward(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    layer(x)


def _forward_backward(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    layer.zero_grad()
    layer(x).backward(gradient)


def _measure(layers: dict[str, nn.Module], run: Callable[..., None], repeats: int) -> dict[str, Any]:
    """Microseconds per call: median and quartiles; overheads are the median and quartiles of paired ratios."""
    x, gradient = torch.randn(BATCH, CHANNELS), torch.randn(BATCH, CHANNELS)
    times: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(-3, repeats):  # three to warm up
        order = list(layers) if repeat % 2 else list(reversed(layers))
        for name in order:
            start = time.perf_counter()
            for _ in range(BLOCK):
                run(layers[name], x, gradient)
            if repeat >= 0:
                times[name].append((time.perf_counter() - start) / BLOCK)
    figure: dict[str, Any] = {name: [1e6 * value for value in _quartiles(series)] for name, series in times.items()}
    for key, name in {"overhead": "wrapped", "noise": "bare again"}.items():
        figure[key] = _quartiles([one / bare - 1 for one, bare in zip(times[name], times["bare"], strict=True)])
    return figure


def _quartiles(values: list[float]) -> list[float]:
    """First quartile, median, third quartile."""
    return statistics.quantiles(values, n=4)


def _line(figure: dict[str, Any]) -> str:
    (_, bare, _), (_, wrapped, _) = figure["bare"], figure["wrapped"]
    (low, middle, high), (_, noise, _) = figure["overhead"], figure["noise"]
    return (
        f"{figure['what']}, {figure['threads']} thread(s): {bare:.0f} -> {wrapped:.0f} us, overhead {middle:+.1%} "
        f"(quartiles {low:+.1%} to {high:+.1%}; bare against bare {noise:+.1%}), "
        f"{_verdict(middle, MOST_OVERHEAD)}: at most {MOST_OVERHEAD:.0%}"
    )


def _verdict(value: float, most: float) -> str:
    return "target met" if value <= most else "target MISSED"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.dormant", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads to measure with")
    parser.add_argument("--rows", type=int, default=esper.GrowthConfig().telemetry_rows, help="vectors of one look")
    parser.add_argument("--repeats", type=int, default=60, help="blocks of each layer")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
