"""The page of several runs side by side."""

import json

import pytest

from esper.observability.compare import compare
from esper.observability.record import read
from esper.observability.report import comparison_page
from tests.browser.test_charts import numbers, point_at_end
from tests.browser.test_report_page import WIDTHS
from tests.few import few
from tests.observability.recorded import write_synthetic


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A run with controls, one that stopped early, and one whose options differ."""
    root = tmp_path_factory.mktemp("compared")
    directories = [
        write_synthetic(root / "first", boundaries=20),
        write_synthetic(root / "stopped", boundaries=12, finished=False),
        write_synthetic(root / "third", boundaries=30, controls=False),
    ]
    page = root / "compare.html"
    page.write_text(comparison_page(compare([read(directory) for directory in directories])), encoding="utf-8")
    return page


@pytest.mark.parametrize("width", few(WIDTHS, [360]))
def test_it_is_calm_and_fits_its_window(compared, visit, width):
    watched = visit(compared, width=width)
    assert (watched.strangers, watched.complaints) == ([], [])
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width


def test_each_run_has_its_row_and_its_line(compared, visit):
    watched = visit(compared)
    names = [run["name"] for run in watched.data["runs"]]
    assert len(names) == 3
    assert watched.page.locator("#runs tbody th").all_inner_texts() == names
    for run in watched.data["runs"]:
        told = point_at_end(watched, run["name"])
        assert numbers(told.split("held-out loss")[1])[:2] == [
            pytest.approx(run["val_losses"][-1], rel=1e-5),
            run["steps"][-1],
        ]


def test_options_that_differ_are_listed(compared, visit):
    cells = visit(compared).page.locator("#differences tr", has_text="epochs").locator("td").all_inner_texts()
    assert cells == ["20", "12", "30"]


def test_one_run_alone_says_why_there_is_nothing_to_compare(compared, tmp_path, visit):
    page = tmp_path / "alone.html"
    page.write_text(comparison_page(compare([read(compared.parent / "first")])), encoding="utf-8")
    watched = visit(page)
    assert watched.complaints == []
    assert "nothing to compare" in watched.page.locator("#pairs .empty").inner_text()


def test_names_of_runs_are_text_and_never_markup(tmp_path, visit):
    directory = write_synthetic(tmp_path / "<img src=x onerror=alert(1)>", boundaries=3)
    page = tmp_path / "evil.html"
    page.write_text(comparison_page(compare([read(directory), read(write_synthetic(tmp_path / "b", boundaries=3))])))
    watched = visit(page)
    assert watched.page.locator("img").count() == 0
    assert watched.complaints == []
    assert json.dumps(watched.data).count("<img src=x") == 1
