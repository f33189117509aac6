"""The live page in a real browser: it moves by itself, keeps what a reader chose, and survives its server."""

import json
import shutil

import pytest

from benchmarks.watching.live import AWAY, answers
from esper.observability.live.directories import DirectoryRuns
from esper.observability.live.server import LiveServer
from tests.few import few
from tests.observability.recorded import write_synthetic


class Going:
    """A run of which lines are written when the test says so, its server, and an open page."""

    def __init__(self, directory, browser, **options):
        self.directory = directory
        write_synthetic(directory, seeds=640, boundaries=30, finished=False)
        self._lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
        (directory / "metrics.jsonl").write_text("".join(self._lines[:20]))
        self._told = 20
        self.server = LiveServer(DirectoryRuns([directory]), 0)
        self.port = self.server.port
        self.context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        self.context.set_default_timeout(60_000)
        self.page, self.complaints = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)
        self.page.goto(f"http://127.0.0.1:{self.port}/")
        self.page.wait_for_selector("#connection:not(.lost)")
        self.page.wait_for_selector("#curves figure")
        self.page.locator("#curves figure").scroll_into_view_if_needed()
        self.page.wait_for_selector("#curves svg")

    def _hear(self, message):
        if message.type in ("error", "warning") and not message.text.startswith(AWAY):
            self.complaints.append(message.text)

    def tell(self, boundaries=1):
        """Write some boundaries."""
        fresh = self._lines[self._told : self._told + 2 * boundaries]
        self._told += len(fresh)
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write("".join(fresh))
        step = json.loads(fresh[-1])["step"]
        self.page.wait_for_selector(f"#now .standing:has-text('step {step:,} of')")

    def close(self):
        self.context.close()
        self.server.close()


@pytest.fixture
def going(tmp_path, browser):
    found = Going(tmp_path / "run", browser)
    yield found
    found.close()


def columns(page) -> int:
    return int(page.locator("#lattice .field canvas").first.get_attribute("width"))


def test_pictures_move_and_keep_what_was_chosen(going):
    page = going.page
    page.locator("#curves").get_by_label("training loss", exact=True).check(force=True)
    page.locator("#settings summary").first.click()
    page.locator("#lattice figure").scroll_into_view_if_needed()
    page.wait_for_selector("#lattice .field canvas")
    assert columns(page) == 10
    page.locator("#lattice .field").click(position={"x": 40, "y": 20})
    opened = page.locator("#lattice .crumbs").inner_text()
    assert "all places" in opened
    assert opened != "all places"
    page.locator("#lattice .map").focus()
    going.tell(3)
    page.wait_for_function("document.querySelector('#lattice .field canvas').width === 13")
    assert page.locator("#lattice .crumbs").inner_text() == opened
    assert page.evaluate("document.activeElement.className") == "map"
    assert page.locator("#settings details").first.get_attribute("open") is not None
    page.locator("#curves figure").scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#curves svg').innerHTML.includes('training loss')")
    assert page.locator("#curves").get_by_label("training loss", exact=True).is_checked()
    assert going.complaints == []


def test_what_was_sent_piece_by_piece_is_drawn_as_what_is_sent_at_once(going):
    page = going.page
    for _ in range(4):
        going.tell()
    drawn = "[...document.querySelectorAll('#curves svg [aria-label=line] path')].map((one) => one.getAttribute('d'))"
    page.locator("#curves figure").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    before = page.evaluate(drawn)
    assert before
    text = page.locator("#story").inner_text()
    page.reload()
    page.wait_for_selector("#curves figure")
    page.locator("#curves figure").scroll_into_view_if_needed()
    page.wait_for_selector("#curves svg")
    assert page.evaluate(drawn) == before
    assert page.locator("#story").inner_text() == text


def test_the_page_survives_its_server(going):
    page = going.page
    going.server.close()
    page.wait_for_selector("#connection.lost")
    assert page.locator("#curves svg").count() > 0
    going.server = LiveServer(DirectoryRuns([going.directory]), going.port)
    page.wait_for_selector("#connection:not(.lost)")
    going.tell()
    assert going.complaints == []


def test_a_deleted_directory_is_said_on_the_page(going):
    shutil.rmtree(going.directory)
    going.page.wait_for_selector("#story .notice:has-text('is gone: this is what was read before.')")
    # a picture is drawn where it is seen, and what was told anew may have moved it
    going.page.wait_for_function(
        "document.querySelector('#curves figure')?.scrollIntoView(), document.querySelector('#curves svg') !== null"
    )
    assert going.complaints == []


@pytest.mark.parametrize("width", few([375, 900, 1600], [375]))
def test_nothing_is_wider_than_the_window(tmp_path, browser, width):
    going = Going(tmp_path / "run", browser, viewport={"width": width, "height": 900}, color_scheme="dark")
    page = going.page
    for section in page.locator("main section").all():
        section.scroll_into_view_if_needed()
    going.tell()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert going.complaints == []
    going.close()


def test_it_answers_while_it_moves(browser):
    """The light version of ``python -m benchmarks.watching live``, which tells how fast."""
    found = answers(browser, seeds=500, before=5, tries=2, settle_s=1.0)
    assert found["complaints"] == []
    assert all(one["fastest"] > 0 for one in found["ms"].values())
    assert found["updates_a_second"] <= 5.1
