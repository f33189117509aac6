"""``python -m benchmarks.seeing``: what the live display costs a run, how large and slow a large report is, and how
soon its page and the command line's help answer.

Display: runs on digits in a pseudo-terminal, with the live display and with plain lines by turns. Report: of a made run
of 10,000 seeds and 100 epochs whose telemetry is as noisy as asked for.
"""

import argparse
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.seeing.answering import BOUNDARIES, SEEDS, helps, pages
from esper.observability.report import write
from tests.observability.recorded import write_synthetic

RESULT = Path(__file__).parent.parent / "results" / "seeing" / "cpu.json"
MOST_BYTES = 5_000_000  # the target


def main() -> None:
    """Measure, print, write ``cpu.json``."""
    options = _parser().parse_args()
    result: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0]}
    result["reports"] = [_report(noise, options.repeats) for noise in options.noise]
    result["help"] = helps(options.tries)
    result["answers"] = pages(options.tries)
    result["display"] = _display(options.pairs, options.epochs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['machine']}\nWritten to {options.output}")


def _report(noise: float, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = write_synthetic(Path(scratch), seeds=SEEDS, boundaries=BOUNDARIES, noise=noise)
        log_bytes, seconds = (directory / "metrics.jsonl").stat().st_size, []
        for _ in range(repeats):
            started = time.perf_counter()
            page_bytes = write(directory).stat().st_size
            seconds.append(time.perf_counter() - started)
    middle, verdict = statistics.median(seconds), "met" if page_bytes < MOST_BYTES else "MISSED"
    print(
        f"{SEEDS:,} seeds, {BOUNDARIES} epochs, noise {noise:.0%}: a log of {log_bytes / 1e6:.1f} MB, a page of "
        f"{page_bytes / 1e6:.2f} MB (target {verdict}: under {MOST_BYTES / 1e6:.0f} MB), written in {middle:.1f} s "
        f"({min(seconds):.1f} to {max(seconds):.1f})",
        flush=True,
    )
    return {"noise": noise, "log_bytes": log_bytes, "page_bytes": page_bytes, "seconds": seconds}


def _display(pairs: int, epochs: int) -> dict[str, Any]:
    """Seconds of training by turns; the order within a pair changes."""
    seconds: dict[str, list[float]] = {"live": [], "plain": []}
    for pair in range(-1, pairs):  # one to warm up
        for kind in ("live", "plain") if pair % 2 else ("plain", "live"):
            took = _run(epochs, ["--plain"] if kind == "plain" else [])
            if pair >= 0:
                seconds[kind].append(took)
    ratios = [live / plain for live, plain in zip(seconds["live"], seconds["plain"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"live display: {middle - 1:+.1%} of the training time (quartiles {low - 1:+.1%} to {high - 1:+.1%}, {pairs} "
        f"pairs of {epochs} epochs on digits, {statistics.median(seconds['plain']):.1f} s each)",
        flush=True,
    )
    return {"epochs": epochs, **seconds, "ratios": ratios}


def _run(epochs: int, options: list[str]) -> float:
    """Train in a pseudo-terminal; gives the seconds that the run measured."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        line = [sys.executable, "-m", "esper", "run", "--no-controls", "--epochs", str(epochs), "--output", str(output)]
        master, terminal = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        process = subprocess.Popen([*line, *options], stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        reader = threading.Thread(target=_drain, args=(master,))
        reader.start()
        code = process.wait()
        reader.join()
        os.close(master)
        if code:
            raise RuntimeError(f"esper run ended with exit code {code}.")
        result = json.loads((output / "result.json").read_text())
    return float(result["rows"]["grown"]["seconds"])


def _drain(master: int) -> None:
    """Read what a terminal is sent until nobody writes to it any more."""
    try:
        while os.read(master, 65536):
            pass
    except OSError:  # Linux's word for a terminal that was closed
        return


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.seeing", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="runs with the display, and as many without")
    parser.add_argument("--epochs", type=int, default=120, help="of each of them")
    parser.add_argument(
        "--noise", type=float, nargs="+", default=[0.2, 0.3], help="of the telemetry, boundary by boundary"
    )
    parser.add_argument("--repeats", type=int, default=3, help="times that a report is written")
    parser.add_argument("--tries", type=int, default=5, help="times that an answer is waited for")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the result is written")
    return parser


if __name__ == "__main__":
    main()
