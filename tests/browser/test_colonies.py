"""A colony is drawn as one: one line with an arm at every box that it meets, one leaf."""

import pytest

from tests.browser.conftest import page_of
from tests.browser.test_report_page import variable
from tests.observability.events import ended, move
from tests.observability.recorded import model_event, place, write_lines

MLPS = [f"blocks.{index}.mlp" for index in range(2)]


def colony(layer_id: str, modules: list[str], role: str = "linear"):
    return place(layer_id, "colony", modules, 1) | {"pieces": [{"module": one, "role": role} for one in modules]}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a run in which one colony was kept, and one was not."""
    directory = tmp_path_factory.mktemp("colonies")
    model = model_event(seeds=8, blocks=2, planned_steps=100)
    every = [one["name"] for one in model["modules"] if one["type"] == "Linear"]
    model["places"] += [colony("*", every), colony("blocks.*.mlp", MLPS), colony("blocks.*", ["blocks.0", "blocks.1"])]
    kept, lost = {"layer_id": "*", "blueprint": "widen"}, {"layer_id": "blocks.*.mlp", "blueprint": "widen"}
    lines = [
        model,
        move(1, "DORMANT", "GERMINATED", 10, layer_id="*"),
        move(2, "DORMANT", "GERMINATED", 20, layer_id="blocks.*.mlp"),
        ended(1, 10, 60, "FOSSILIZED", **kept),
        ended(2, 20, 60, "CULLED", **lost),
    ]
    write_lines(directory / "audit.jsonl", [{"time": float(number), **line} for number, line in enumerate(lines)])
    return page_of(directory)


def arms(watched, fate: str) -> list[int]:
    """Arms of every colony's line of a fate."""
    drawn = watched.page.locator(f"svg.anatomy .colony.{fate} .arms").all()
    return [one.get_attribute("d").count("H") for one in drawn]


@pytest.mark.parametrize("width", [400, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_line_reaches_every_box(report, visit, width, scheme):
    watched = visit(report, width=width, scheme=scheme)
    assert (arms(watched, "kept"), arms(watched, "refused"), arms(watched, "idle")) == ([4], [2], [2])
    dots = watched.page.locator("svg.anatomy .colony.kept circle")
    assert dots.count() == 4
    assert dots.first.evaluate("(dot) => getComputedStyle(dot).fill") == variable(watched.page, "--growth")
    assert watched.page.locator("svg.anatomy .graft").count() == 2
    assert not watched.complaints
    assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_arms_of_a_closed_block_become_one(report, visit):
    watched = visit(report)
    watched.page.locator("svg.anatomy .module.fold", has_text="blocks").first.focus()
    watched.page.keyboard.press("Enter")
    assert arms(watched, "kept") == [1]


def test_a_box_tells_its_pieces(report, visit):
    watched = visit(report)
    told = watched.point(watched.page.locator("svg.anatomy .module:not(.fold)", has_text="mlp").first)
    assert "colony all channels (*)" in told
    assert "colony blocks.*.mlp" in told


def test_all_channels_are_called_so(report, visit):
    watched = visit(report)
    assert "widen on all channels" in watched.page.locator("main").inner_text()
    assert "all channels (*): widen" in watched.page.locator("svg.anatomy .graft.kept").text_content()
