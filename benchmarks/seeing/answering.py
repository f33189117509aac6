"""How soon a page of ten thousand seeds answers, in a real browser; and how soon ``esper --help`` does.

What is measured is the page, and not what else its machine does meanwhile: of several tries the fastest counts.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from esper.cli.command_line import COMMANDS
from esper.observability.report import write
from tests.browser.conftest import FLAGS, NAMES, executable, visitor
from tests.observability.recorded import write_synthetic

SEEDS, BOUNDARIES = 10_000, 100
PLACES = {"many places": {}, "large places": {"blocks": 2}}
NOTICED_MS = 100
MOST_SECONDS = 0.5
"""The targets: an answer later than these is noticed."""

TIMED = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  await frame();
  const begun = performance.now();
  (ACT)();
  await frame();
  await frame();
  return performance.now() - begun;
}"""
"""Milliseconds from an event until what it changed has been painted, the frames' own 17 to 33 ms included."""

HOVER = """() => {
  const field = document.querySelector('#lattice .field');
  const box = field.getBoundingClientRect();
  const [clientX, clientY] = [box.left + Math.random() * box.width, box.top + 50 + Math.random() * 200];
  field.dispatchEvent(new PointerEvent('pointermove', { bubbles: true, clientX, clientY }));
}"""
CURSOR = """() => document.querySelector('#lattice .map').dispatchEvent(
  new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }))"""
CHOOSE = "() => document.querySelectorAll('#lattice input[type=radio]')[INDEX].click()"
ZOOM = """() => {
  const field = document.querySelector('#lattice .field');
  const box = field.getBoundingClientRect();
  const clientY = box.top + (ROW + 0.5) * box.height / ROWS;
  field.dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: box.left + 50, clientY }));
}"""
BACK = """() => document.querySelector('#lattice .drawing').dispatchEvent(
  new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))"""


def zoom(row: int, rows: int) -> str:
    """A click on a row of all rows."""
    return ZOOM.replace("ROWS", str(rows)).replace("ROW", str(row))


def into_largest(data: dict[str, Any]) -> str:
    """A click on the place with the most seeds."""
    seeds = [place["seeds"] for place in data["lattice"]["places"]]
    return zoom(seeds.index(max(seeds)), len(seeds))


def in_place(data: dict[str, Any]) -> dict[str, str]:
    """What can be done without leaving a level; the measures in an order in which each of them is a change."""
    last = len(data["lattice"]["measures"])
    chosen = {f"choice {index}": CHOOSE.replace("INDEX", str(index)) for index in (*range(1, last + 1), 0)}
    return {"hover": HOVER, "cursor": CURSOR, **chosen}


def ways(data: dict[str, Any]) -> dict[str, str]:
    """Into one place, into one seed, and back."""
    return {"into place": into_largest(data), "into seed": zoom(1, 100), "out of seed": BACK, "out of place": BACK}


def fastest_ms(page: Any, acts: dict[str, str], tries: int) -> dict[str, float]:
    """Milliseconds that each act takes, the best of several tries."""
    taken = [{name: page.evaluate(TIMED.replace("ACT", act)) for name, act in acts.items()} for _ in range(tries)]
    return {name: min(one[name] for one in taken) for name in acts}


def pages(tries: int) -> list[dict[str, Any]]:
    """The acts on each page, with their milliseconds; printed too."""
    if executable() is None:
        raise SystemExit(f"No browser found ({', '.join(NAMES)}): run scripts/browser to install one.")
    found = []
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as scratch:
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        with visitor(chromium) as visit:
            for name, blocks in PLACES.items():
                page = write(write_synthetic(Path(scratch) / name, seeds=SEEDS, boundaries=BOUNDARIES, **blocks))
                found.append({"page": name, "ms": _answers(visit(page), tries)})
                slowest = max(found[-1]["ms"].items(), key=lambda one: one[1])
                print(
                    f"{SEEDS:,} seeds in {name}: the slowest of {len(found[-1]['ms'])} acts, {slowest[0]}, is answered "
                    f"in {slowest[1]:.0f} ms (target {_verdict(slowest[1] < NOTICED_MS)}: under {NOTICED_MS} ms; best "
                    f"of {tries})",
                    flush=True,
                )
        chromium.close()
    return found


def _answers(watched: Any, tries: int) -> dict[str, float]:
    page, data = watched.page, watched.data
    watched.page.locator("#lattice").scroll_into_view_if_needed()
    taken = {f"all places, {name}": ms for name, ms in fastest_ms(page, in_place(data), tries).items()}
    taken |= fastest_ms(page, ways(data), tries)
    page.evaluate(into_largest(data))
    return taken | {f"one place, {name}": ms for name, ms in fastest_ms(page, in_place(data), tries).items()}


def helps(tries: int) -> dict[str, list[float]]:
    """Seconds of ``--help`` of ``esper`` and of each command; printed too."""
    found = {}
    for command in ("", *COMMANDS):
        seconds = found[f"esper {command}".strip()] = []
        for _ in range(tries):
            started = time.perf_counter()
            line = [sys.executable, "-m", "esper", *command.split(), "--help"]
            subprocess.run(line, check=True, capture_output=True)
            seconds.append(time.perf_counter() - started)
        print(
            f"{f'esper {command}'.strip()} --help: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to "
            f"{max(seconds):.2f}; target {_verdict(min(seconds) < MOST_SECONDS)}: under {MOST_SECONDS} s)",
            flush=True,
        )
    return found


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"
