"""Pages in a real browser: what they ask for, what they complain of, and what they are made from."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from esper.observability.record import read
from esper.observability.report import report
from tests.observability.recorded import write_synthetic

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-quic"),
]
PATIENCE_MS = 600_000
"""How long to wait for what must happen: a guard against hanging, as long as that of pytest."""


@dataclass
class Watched:
    """A page that is open, and everything that it asked for and complained of since."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    """Requests that the page's own policy did not let out."""

    @property
    def strangers(self) -> list[str]:
        """Requests other than for the page itself."""
        return [url for url in self.requests if url != self.page.url and not url.startswith("data:")]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's scripts draw."""
        return self.page.evaluate("JSON.parse(document.getElementById('report-data').textContent)")

    @property
    def tip(self) -> str:
        """The tooltip's text; empty while it is not shown."""
        # one look: between two it may be gone
        return str(self.page.evaluate("document.querySelector('#tooltip.shown')?.innerText ?? ''"))

    def point(self, node: Any) -> str:
        """Move the pointer to the middle of an element; the tooltip's text."""
        node.scroll_into_view_if_needed()
        self.next_frame()  # only then is a scroll told of, which takes the tooltip away
        box = node.bounding_box()
        self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        return self.tip

    def choose(self, section: str, words: str) -> None:
        """Choose one of the alternatives above a chart."""
        self.page.locator(f"#{section}").get_by_label(words, exact=True).check(force=True)

    def next_frame(self) -> None:
        """Wait until what has happened is told to the page and painted."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def settled(self) -> None:
        """Wait until everything is drawn, or said instead."""
        self.page.wait_for_selector("figure .unscripted", state="detached")
        if self.page.locator("figure[data-chart=lattice]").count():
            self.page.wait_for_selector("figure[data-chart=lattice] :is(canvas, .empty)")


def executable() -> str | None:
    """Path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing(reason: str) -> None:
    """Skip, or fail where a browser was promised."""
    if os.environ.get("ESPER_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium with a fresh profile."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install 'esper-morphogenetic[dev]'")
    if executable() is None:
        missing(f"no browser found ({', '.join(NAMES)}): run scripts/browser to install one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS, timeout=PATIENCE_MS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Watched]]:
    """Open a file: ``visit(path, width=1440, scheme="light", scripts=True)``."""
    with visitor(browser) as visit:
        yield visit


@contextmanager
def visitor(browser: Any) -> Iterator[Callable[..., Watched]]:
    """What ``visit`` gives, for as long as wanted."""
    contexts = []

    def visit(path: Path, *, width: int = 1440, scheme: str = "light", scripts: bool = True, **options: Any) -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=scripts,
            **{"reduced_motion": "reduce", **options},
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
        watched = Watched(context.new_page())
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.on(
            "requestfailed",
            lambda request: watched.blocked.append(request.url) if request.failure == "csp" else None,
        )
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on(
            "console",
            lambda message: watched.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        watched.page.goto(path.absolute().as_uri())
        if scripts:
            watched.settled()
        return watched

    try:
        yield visit
    finally:
        for context in contexts:
            context.close()


def page_of(directory: Path) -> Path:
    """Write the report of a run."""
    path = directory / "report.html"
    path.write_text(report(read(directory)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def grown(tmp_path_factory) -> Path:
    """Report of a finished run with lifecycles of every outcome."""
    return page_of(write_synthetic(tmp_path_factory.mktemp("grown")))


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory) -> Path:
    """Report of a run that was interrupted."""
    return page_of(write_synthetic(tmp_path_factory.mktemp("unfinished"), finished=False))


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    """Report of a run of which only the first lines of a log are left."""
    directory = tmp_path_factory.mktemp("bare")
    (directory / "audit.jsonl").write_text('{"event": "note", "time": 0.0, "step": 0, "text": "begun"}\n{"event": ')
    return page_of(directory)


@pytest.fixture(scope="session")
def many_places(tmp_path_factory) -> Path:
    """Report of a run with ten thousand seeds."""
    return page_of(write_synthetic(tmp_path_factory.mktemp("many"), seeds=10_000, boundaries=30))


@pytest.fixture(scope="session")
def large_places(tmp_path_factory) -> Path:
    """The same seeds in four layers."""
    return page_of(write_synthetic(tmp_path_factory.mktemp("large"), seeds=10_000, boundaries=100, blocks=2))
