"""Unusual runs and old browsers: every picture is right, or says why it is not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import page_of
from tests.browser.test_charts import line_of, numbers
from tests.browser.test_report_page import WIDTHS, computed, variable
from tests.few import few
from tests.observability.recorded import write_synthetic

IMPOSSIBLE = """[...document.querySelectorAll('svg, svg *')].flatMap((node) => [...node.attributes])
  .filter((one) => /NaN|Infinity|undefined|null/.test(one.value)).map((one) => one.value)"""
"""Attributes of drawings that come of numbers which are none."""

OUTSIDE = """[...document.querySelectorAll('svg text')].filter((node) => {
  const box = node.getBoundingClientRect();
  return box.width > 0 && (box.left < 0 || box.right > innerWidth);
}).map((node) => node.textContent)"""
"""Texts of drawings that leave the window."""


def changed(directory: Path, file: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Write a log anew, each line as ``change`` gives it back; None leaves it out."""
    path = directory / file
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def test_one_boundary_is_a_dot(tmp_path, visit):
    directory = write_synthetic(tmp_path)
    changed(directory, "metrics.jsonl", lambda line: line if line["epoch"] == 1 else None)
    watched = visit(page_of(directory))
    assert watched.complaints == []
    assert watched.page.evaluate(IMPOSSIBLE) == []
    assert line_of(watched.page, "this run").get_attribute("marker-start") is not None


@pytest.fixture
def uneven(tmp_path, visit):
    """A loss that is missing, then huge, then 0."""

    def change(line):
        if line["event"] == "epoch":
            line |= {"val_metric": None} | {5: {"val_loss": None}, 6: {"val_loss": 1e200}, 7: {"val_loss": 0.0}}.get(
                line["epoch"], {}
            )
        return line

    directory = write_synthetic(tmp_path, controls=False)
    changed(directory, "metrics.jsonl", change)
    return visit(page_of(directory))


def test_a_loss_that_is_missing_leaves_a_gap(uneven):
    """Nor is a zero drawn on a logarithmic scale."""
    strokes = "(line) => line.getAttribute('d').split('M').length - 1"
    assert line_of(uneven.page, "this run").evaluate(strokes) == 2
    uneven.choose("curves", "log scale")
    assert line_of(uneven.page, "this run").evaluate(strokes) == 3
    assert uneven.page.evaluate(IMPOSSIBLE) == []
    assert uneven.complaints == []


def test_gains_that_were_not_measured_are_said_to_be_missing(tmp_path, visit):
    directory = write_synthetic(tmp_path)
    names = ("gain", "gain_se", "twin_z", "select_loss", "ablation_gain", "ablation_gain_se", "ablation_z")
    kinds = ("arm_ended", "keep_look")
    changed(directory, "audit.jsonl", lambda line: line | dict.fromkeys(names) if line["event"] in kinds else line)
    watched = visit(page_of(directory))
    rows = watched.page.locator("svg.worth .item", has_text="not measured")
    assert rows.count() == len([row for row in watched.data["worth"] if row["mean"] is None])
    assert watched.page.evaluate(IMPOSSIBLE) == []
    assert watched.complaints == []


@pytest.mark.parametrize("width", few(WIDTHS, [360]))
def test_long_names_stay_inside(tmp_path, visit, width):
    directory = write_synthetic(tmp_path)
    for name in ("audit.jsonl", "metrics.jsonl", "result.json"):
        text = (directory / name).read_text()
        for short in ("blocks", "bottleneck_mlp", "lost_round"):
            text = text.replace(short, f"{short}_{'w' * 120}")
        (directory / name).write_text(text)
    page = visit(page_of(directory), width=width).page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OUTSIDE) == []


def test_many_lifecycles_are_shown_when_asked_for(tmp_path, visit):
    directory = write_synthetic(tmp_path)
    germination = next(
        line
        for line in map(json.loads, (directory / "audit.jsonl").read_text().splitlines())
        if line["event"] == "transition"
    )
    with (directory / "audit.jsonl").open("a") as file:
        file.writelines(json.dumps(germination | {"lifecycle": number}) + "\n" for number in range(100, 300))
    watched = visit(page_of(directory))
    page, lanes = watched.page, watched.data["lanes"]
    assert len(lanes) == 206
    assert page.locator("svg.lanes .row").count() == 40
    page.get_by_role("button", name="Show all 206 lifecycles").press("Enter")
    assert page.locator("svg.lanes .row").count() == 206
    assert page.evaluate("document.activeElement.matches('svg.lanes .span')")
    assert watched.complaints == []


def test_a_place_whose_seeds_changed_in_number_has_two_rows(tmp_path, visit):
    def change(line):
        if line["event"] == "telemetry" and line["epoch"] > 6:
            place = line["places"]["blocks.0.mlp"]
            place |= {name: values[:3] for name, values in place.items() if name != "awake"}
        return line

    directory = write_synthetic(tmp_path, boundaries=12)
    changed(directory, "metrics.jsonl", change)
    watched = visit(page_of(directory))
    lattice = watched.data["lattice"]
    row = next(i for i, place in enumerate(lattice["places"]) if place["seeds"] == 3)
    assert lattice["places"][row]["layer_id"] == lattice["places"][row - 1]["layer_id"] == "blocks.0.mlp"
    watched.page.locator("#lattice .map").focus()
    for _ in range(row):
        watched.page.keyboard.press("ArrowDown")
    assert "not measured" in watched.tip
    assert "not there" in watched.tip
    watched.page.keyboard.press("End")
    assert numbers(watched.tip.split("median variance")[1])
    assert "not there" not in watched.tip


def test_green_is_what_grew(grown, tmp_path, visit):
    page = visit(grown).page
    assert computed(page, "#rows tbody td", "color") == variable(page, "--growth")
    directory = write_synthetic(tmp_path)
    path = directory / "result.json"
    path.write_text(path.read_text().replace("FOSSILIZED", "CULLED"))
    changed(directory, "audit.jsonl", lambda line: None if "FOSSILIZED" in json.dumps(line) else line)
    page = visit(page_of(directory)).page
    assert computed(page, "#rows tbody td", "color") == variable(page, "--ink")


def with_script(page: Path, script: str, tmp_path: Path) -> Path:
    """A copy of a page in which a script runs before all others."""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</header>", f"</header><script>{script}</script>"))
    return copy


def test_an_old_browser_says_what_it_lacks(grown, tmp_path, visit):
    watched = visit(with_script(grown, "delete globalThis.DecompressionStream", tmp_path))
    assert "too old" in watched.page.locator("#lattice .drawing .empty").inner_text()
    assert watched.page.locator("svg.lanes").is_visible()
    assert watched.complaints == []


def test_a_picture_that_fails_says_so_and_leaves_the_others_alone(grown, tmp_path, visit):
    page = tmp_path / "page.html"
    page.write_text(grown.read_text().replace('"worth":[', '"worth":[null,'))
    watched = visit(page)
    assert "could not be drawn" in watched.page.locator("#worth .drawing .empty").inner_text()
    assert watched.page.locator("#curves svg.lines").is_visible()
    assert watched.page.locator("#lattice canvas").count() > 0
    assert len(watched.complaints) == 1
