"""The report as a page: it is safe, it can be read by everyone, and it never vanishes."""

import json
import re
from itertools import pairwise

import pytest

from esper.observability.record import read
from esper.observability.report import report
from tests.browser.conftest import page_of
from tests.few import few
from tests.observability.recorded import write_synthetic

SECTIONS = ("rows", "curves", "anatomy", "lanes", "worth", "lattice", "reports", "settings")
WIDTHS = (360, 820, 1440)
STRANGER = "https://example.invalid/pixel.png"


@pytest.fixture(params=["grown", "unfinished", "bare"])
def any_report(request):
    """Reports of runs that ended well, too early, and badly."""
    return request.getfixturevalue(request.param)


def test_it_asks_for_nothing_and_complains_of_nothing(any_report, visit):
    watched = visit(any_report)
    watched.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    watched.next_frame()
    assert watched.strangers == []
    assert watched.complaints == []


def test_a_request_would_be_noticed(grown, tmp_path, visit):
    """The recorder of the test above is not blind."""
    page = tmp_path / "page.html"
    without_policy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", grown.read_text())
    page.write_text(without_policy.replace("</header>", f'<img src="{STRANGER}"></header>'))
    watched = visit(page)
    assert watched.strangers == [STRANGER]
    assert watched.blocked == []


def test_its_policy_forbids_requests(grown, tmp_path, visit):
    page = tmp_path / "page.html"
    page.write_text(grown.read_text().replace("</header>", f'<img src="{STRANGER}"></header>'))
    watched = visit(page)
    assert watched.blocked == [STRANGER]
    assert any("Content Security Policy" in complaint for complaint in watched.complaints)


@pytest.mark.parametrize("script", ["console.error('broken')", "throw new Error('broken')"])
def test_a_complaint_would_be_noticed(grown, tmp_path, visit, script):
    page = tmp_path / "page.html"
    page.write_text(grown.read_text().replace("</header>", f"</header><script>{script}</script>"))
    assert any("broken" in complaint for complaint in visit(page).complaints)


def test_names_in_the_record_are_text_and_never_markup(tmp_path, visit):
    """Wherever a user's words end up: tables, tooltips, the data of the charts."""
    directory = write_synthetic(tmp_path)
    evil = f"</script><img src='{STRANGER}' onerror='document.title=1'><script>document.title=2</script>"
    for name in ("audit.jsonl", "result.json", "config.yaml"):
        text = (directory / name).read_text()
        for honest in ("bottleneck_mlp", "lost_round", "made-up", "Block", "the growth window is open"):
            text = text.replace(honest, json.dumps(evil)[1:-1] if name != "config.yaml" else "evil")
        (directory / name).write_text(text)
    watched = visit(page_of(directory))
    for node in watched.page.locator("svg .graft text, svg .span").all()[:8]:
        watched.point(node)
    assert watched.page.locator("img").count() == 0
    assert watched.page.title() not in ("1", "2")
    assert (watched.strangers, watched.complaints) == ([], [])
    assert evil in watched.page.locator("#reports").inner_text()


def test_every_section_is_there_or_says_why_not(any_report, visit):
    page = visit(any_report).page
    for name in SECTIONS:
        section = page.locator(f"#{name}")
        shown = section.locator("svg, canvas, table, details").count()
        reasons = [text for text in section.locator(".empty").all_inner_texts() if len(text.split()) > 3]
        assert section.locator("h2").is_visible()
        assert shown or reasons, name


def test_what_is_missing_stands_at_the_top(bare, grown, visit):
    page = visit(bare).page
    notice = page.locator(".notice")
    assert notice.bounding_box()["y"] < page.locator("h1").bounding_box()["y"]
    assert "audit.jsonl" in notice.inner_text()
    assert visit(grown).page.locator(".notice").count() == 0


def test_text_and_tables_need_no_scripts(grown, visit):
    page = visit(grown, scripts=False).page
    assert len(page.locator("h1").inner_text()) > 10
    assert page.locator("#rows table").first.locator("tbody tr").count() == 3
    assert page.locator("#reports table").first.locator("tbody tr").count() == 6
    assert "need JavaScript" in page.locator("noscript").first.inner_text()
    for name in ("curves", "anatomy", "lanes", "worth", "lattice"):
        assert page.locator(f"#{name}-summary").is_visible()


@pytest.mark.parametrize("width", few(WIDTHS, [360, 1440]))
def test_it_fits_its_window(any_report, visit, width):
    page = visit(any_report, width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [page.locator(f"#{name}").bounding_box() for name in ("story", *SECTIONS)]
    for above, below in pairwise(boxes):
        assert above["y"] + above["height"] <= below["y"]
    for drawing in page.locator("figure svg, figure .map, figure fieldset").all():
        box = drawing.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 1


def test_charts_follow_the_window(grown, visit):
    page = visit(grown, width=1440).page
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_selector("#curves svg.lines[width='328']")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("svg.anatomy").bounding_box()["width"] <= 360


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2)."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2)."""
    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def computed(page, selector: str, name: str) -> str:
    return page.locator(selector).first.evaluate(f"(node) => getComputedStyle(node).{name}")


def variable(page, name: str) -> str:
    """A colour of the style sheet, computed."""
    return page.evaluate(
        "(name) => { const probe = document.body.appendChild(document.createElement('i'));"
        " probe.style.color = `var(${name})`; const found = getComputedStyle(probe).color; probe.remove();"
        " return found; }",
        name,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(grown, visit, scheme):
    page = visit(grown, scheme=scheme).page
    paper, wash = variable(page, "--paper"), variable(page, "--wash")
    names = ("ink", "quiet", "growth", "warn", "control-1", "control-2", *(f"run-{i}" for i in range(1, 9)))
    for name in names:
        assert contrast(variable(page, f"--{name}"), paper) >= 4.5, name
    assert contrast(variable(page, "--quiet"), wash) >= 4.5
    assert contrast(variable(page, "--ink"), variable(page, "--box")) >= 4.5
    assert contrast(variable(page, "--ink"), variable(page, "--warn-wash")) >= 4.5
    assert contrast(computed(page, "body", "color"), computed(page, "body", "backgroundColor")) >= 4.5
    fills = "[...new Set([...document.querySelectorAll('svg text')].map((text) => getComputedStyle(text).fill))]"
    for fill in page.evaluate(fills):
        assert contrast(fill, paper) >= 4.5, fill
    assert contrast(variable(page, "--quiet"), variable(page, "--box")) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_states_can_be_seen(grown, visit, scheme):
    page = visit(grown, scheme=scheme).page
    for state in range(1, 11):
        assert contrast(variable(page, f"--state-{state}"), variable(page, "--paper")) >= 3, state


def test_it_is_dark_where_the_reader_wants_it(grown, visit):
    light, dark = (visit(grown, scheme=scheme).page for scheme in ("light", "dark"))
    assert luminance(computed(light, "body", "backgroundColor")) > 0.9
    assert luminance(computed(dark, "body", "backgroundColor")) < 0.05
    assert corner(light) != corner(dark)


def corner(page) -> list[int]:
    """The first pixel of the heat map."""
    return page.evaluate(
        "[...document.querySelector('#lattice .field canvas').getContext('2d').getImageData(0, 0, 1, 1).data]"
    )


def test_it_prints_in_light_colours(grown, visit):
    light, dark = visit(grown).page, visit(grown, scheme="dark")
    page = dark.page
    page.emulate_media(media="print")
    dark.next_frame()
    assert computed(page, "body", "backgroundColor") == "rgb(255, 255, 255)"
    assert corner(page) == corner(light)
    assert not page.locator(".contents").is_visible()
    assert not page.locator(".controls").first.is_visible()


def test_nothing_that_matters_is_missing_in_print(grown, visit):
    page = visit(grown).page
    page.emulate_media(media="print")
    for name in SECTIONS:
        assert page.locator(f"#{name} h2").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("#settings dd").last.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert page.pdf().startswith(b"%PDF")


def test_the_keyboard_reaches_everything(grown, visit):
    """Tabbing passes every control and chart, and what has the focus can be seen."""
    page = visit(grown).page
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        where, style, what = page.evaluate(
            "() => { const node = document.activeElement;"
            " const seen = node.matches('[type=radio]') ? node.nextElementSibling : node;"
            " return [(node.closest('section, nav.contents') ?? node).id || node.className,"
            " getComputedStyle(seen).outlineStyle, node.outerHTML.slice(0, 80)]; }"
        )
        if what.startswith("<body"):  # once around
            break
        assert style != "none", what
        reached.add(where)
    assert reached >= set(SECTIONS)


def test_each_chart_has_words_for_those_who_do_not_see_it(grown, visit):
    page = visit(grown).page
    for figure in page.locator("figure[data-chart]").all():
        summary = figure.get_attribute("aria-labelledby")
        assert len(page.locator(f"#{summary}").inner_text().split()) >= 4
    for drawing in page.locator("figure .drawing svg, figure .map").all():
        assert len(drawing.get_attribute("aria-label").split()) >= 4


def test_motion_is_reduced_where_the_reader_wants_it(grown, visit):
    still, moving = (visit(grown, reduced_motion=wish).page for wish in ("reduce", "no-preference"))
    for selector, name, motionless in (("html", "scrollBehavior", "auto"), ("svg .leaf", "transitionDuration", "0s")):
        assert computed(still, selector, name) == motionless
        assert computed(moving, selector, name) != motionless


def test_a_table_sorts_by_a_column(grown, visit):
    page = visit(grown).page
    table = page.locator("#reports table").first
    heading = table.locator("th", has_text="parameters")
    column = heading.evaluate("(cell) => cell.cellIndex")
    values = (
        "(table, column) => [...table.tBodies[0].rows]"
        ".map((row) => Number(row.cells[column].querySelector('data').value))"
    )
    heading.locator("button").click()
    rising = table.evaluate(values, column)
    assert rising == sorted(rising)
    assert rising != sorted(rising, reverse=True)
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert table.evaluate(values, column) == sorted(rising, reverse=True)
    assert heading.get_attribute("aria-sort") == "descending"


def test_wide_tables_scroll_in_their_own_box(grown, visit):
    box = visit(grown, width=360).page.locator("#reports .scroll").first
    assert box.evaluate("(node) => node.scrollWidth > node.clientWidth")


def test_the_same_record_gives_the_same_page(grown):
    directory = grown.parent
    assert report(read(directory)) == report(read(directory))
