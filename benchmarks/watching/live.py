"""How soon the live page answers, in a real browser, while a run of ten thousand seeds tells five boundaries a second.

Writer, server and browser are processes of their own. The server is ended and started again in between: where the
page does not go on after that, it never ends.
"""

import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from benchmarks.seeing.answering import NOTICED_MS, TIMED, in_place, into_largest, ways
from esper.observability.lattice import lattice
from esper.observability.record import read
from tests.brokers import free_port
from tests.browser.conftest import FLAGS, executable
from tests.prometheus import eventually

COUNTED = """
const Source = EventSource;
window.told = [];
window.EventSource = class extends Source {
  constructor(...all) {
    super(...all);
    this.addEventListener("change", () => window.told.push(performance.now()));
  }
};
window.longest = 0;
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) window.longest = Math.max(window.longest, one.duration);
}).observe({ entryTypes: ["longtask"] });
"""
"""Counts changes that the server sends, and the longest time for which the page answers nothing."""

WINDOW: Any = {"width": 1440, "height": 900}

AWAY = "Failed to load resource: net::ERR_"
"""What a browser itself says of a server that is away; no error of the page."""


def measure() -> dict[str, Any]:
    """Everything, in a browser of its own."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        found = answers(chromium)
        chromium.close()
    return found


def answers(
    chromium: Any, seeds: int = 10_000, rate: float = 5.0, before: int = 60, tries: int = 20, settle_s: float = 5.0
) -> dict[str, Any]:
    """Milliseconds that each act takes, with what else was seen.

    Args:
        chromium: a browser.
        seeds: of the run.
        rate: boundaries a second.
        before: boundaries that are there when it begins.
        tries: of each act.
        settle_s: until it is looked at: scripts are compiled while they first run.
    """
    complaints: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, chromium.new_context(viewport=WINDOW) as context:
        directory, port, page = Path(scratch) / "run", free_port(), context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda one: complaints.append(one.text) if one.type in ("error", "warning") else None)
        page.add_init_script(COUNTED)
        with _writing(directory, seeds, rate):
            assert eventually(lambda: _boundaries(directory) >= before)
            with _serving(directory, port):
                page.goto(f"http://127.0.0.1:{port}/")
                page.locator("#lattice figure").scroll_into_view_if_needed()
                page.wait_for_selector("#lattice canvas")
                page.wait_for_timeout(1000 * settle_s)
                page.evaluate("window.longest = 0")
                ms = _answers(page, {"lattice": lattice(read(directory))}, tries)
                told, longest = page.evaluate("[told, longest]")
            page.wait_for_selector("#connection.lost")
            with _serving(directory, port):
                page.wait_for_selector("#connection:not(.lost)")
                seen = page.inner_text("#now .standing")
                page.wait_for_function("seen => document.querySelector('#now .standing').innerText !== seen", arg=seen)
    gaps = [1e-3 * (later - earlier) for earlier, later in pairwise(told)]
    return {
        "seeds": seeds,
        "boundaries_a_second": rate,
        "boundaries_at_first": before,
        "updates_a_second": round(1 / statistics.mean(gaps), 2),
        "ms": ms,
        "slowest_median_ms": max(one["median"] for one in ms.values()),
        "noticed_ms": NOTICED_MS,
        "longest_task_ms": round(longest),
        "complaints": [one for one in complaints if not one.startswith(AWAY)],
    }


def _answers(page: Any, data: dict[str, Any], tries: int) -> dict[str, dict[str, float]]:
    """The fastest, median and 95th percentile of each act, on either level of the lattice and between them."""
    rounds = []
    for _ in range(tries):
        taken = {f"all places, {name}": _ms(page, act) for name, act in in_place(data).items()}
        taken |= {name: _ms(page, act) for name, act in ways(data).items()}
        page.evaluate(into_largest(data))
        taken |= {f"one place, {name}": _ms(page, act) for name, act in in_place(data).items()}
        page.evaluate("document.querySelector('#lattice .crumbs button').click()")
        rounds.append(taken)
    return {
        name: {
            "fastest": round(min(one[name] for one in rounds), 1),
            "median": round(statistics.median(one[name] for one in rounds), 1),
            "95 %": round(sorted(one[name] for one in rounds)[int(0.95 * len(rounds))], 1),
        }
        for name in rounds[0]
    }


def _ms(page: Any, act: str) -> float:
    return float(page.evaluate(TIMED.replace("ACT", act)))


@contextmanager
def _writing(directory: Path, seeds: int, rate: float) -> Iterator[None]:
    with _running("benchmarks.watching.writing", str(directory), str(seeds), str(rate), "100000"):
        yield


@contextmanager
def _serving(directory: Path, port: int) -> Iterator[None]:
    with _running("esper", "watch", str(directory), "--port", str(port)):
        assert eventually(lambda: _answers_at(port))
        yield


@contextmanager
def _running(module: str, *words: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", module, *words], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _boundaries(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") // 2 if path.exists() else 0


def _answers_at(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
