"""The pictures of the report say what the record says, by pointer and by keyboard."""

import re

import numpy as np
import pytest

from tests.browser.test_report_page import variable


@pytest.fixture
def watched(grown, visit):
    return visit(grown)


def numbers(text: str) -> list[float]:
    """All numbers in a text, without commas."""
    return [
        float(found)
        for found in re.findall(r"[+-]?\d[\d.]*(?:e[+-]?\d+)?", text.replace(",", "").replace("\u2212", "-"))
    ]


def end_of_line(page, name: str) -> tuple[float, float]:
    """Where on the screen the line of that name ends."""
    return tuple(
        line_of(page, name).evaluate(
            "(line) => { const end = line.getPointAtLength(line.getTotalLength()).matrixTransform(line.getScreenCTM());"
            " return [end.x, end.y]; }"
        )
    )


def lefts_of_line(page, name: str) -> list[float]:
    """Distances of a line's points from the left, in pixels."""
    return [left for left, _ in points_of_line(page, name)]


def points_of_line(page, name: str) -> list[tuple[float, float]]:
    """Where a line's points stand in the drawing, in pixels from the left and from the top."""
    path = line_of(page, name).get_attribute("d")
    return [tuple(map(float, point.split(","))) for point in re.findall(r"[ML]([^MLZ]+)", path)]


def line_of(page, name: str):
    return page.locator(f"#curves svg.lines path[aria-label='{name}']")


def press_until(watched, key: str, words: str) -> None:
    """Press a key until the tooltip has these words, but not for ever."""
    watched.next_frame()  # a focus may have scrolled, which takes the tooltip away once it is told
    for _ in range(50):
        watched.page.keyboard.press(key)
        if words in watched.tip:
            return
    pytest.fail(f"{words!r} was not reached")


def point_at_end(watched, name: str) -> str:
    """Move the pointer to the end of a line; the tooltip's text."""
    watched.point(watched.page.locator("#curves svg.lines"))
    watched.page.mouse.move(*end_of_line(watched.page, name))
    return watched.tip


def test_a_curve_tells_its_exact_values(watched):
    run = watched.data["curves"]["run"]
    told = point_at_end(watched, "this run")
    halo = watched.page.locator("#curves svg.lines .halo")
    shown = [float(halo.get_attribute(name)) for name in ("cx", "cy")]
    assert shown == pytest.approx(points_of_line(watched.page, "this run")[-1], abs=0.01)
    assert "this run" in told
    assert numbers(told.split("held-out loss")[1])[:2] == [
        pytest.approx(run["val_losses"][-1], rel=1e-5),
        run["steps"][-1],
    ]


def test_a_curve_is_read_by_arrow_keys(watched):
    page, run = watched.page, watched.data["curves"]["run"]
    chart = page.locator("#curves svg.lines")
    chart.focus()
    press_until(watched, "ArrowDown", "this run")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert numbers(watched.tip.split("held-out loss")[1])[:2] == [
        pytest.approx(run["val_losses"][1], rel=1e-5),
        run["steps"][1],
    ]
    assert "this run" in page.locator("#spoken").inner_text()


def test_the_axis_can_be_training_flops(watched):
    page = watched.page
    axis = page.locator("#curves svg.lines [aria-label='x-axis label']")
    assert axis.text_content() == "steps"
    watched.choose("curves", "over training FLOPs")
    assert axis.text_content() == "training FLOPs"
    curves = watched.data["curves"]
    run, host_on = curves["run"], curves["controls"][0]
    lefts = lefts_of_line(page, "this run") + lefts_of_line(page, "host trained on")
    assert np.corrcoef(lefts, run["flops"] + host_on["flops"])[0, 1] > 1 - 1e-6
    assert np.corrcoef(lefts, run["steps"] + host_on["steps"])[0, 1] < 1 - 1e-6


def test_the_loss_can_be_logarithmic(watched):
    """Equal ratios are then equally far apart."""
    page = watched.page
    heights = """[...document.querySelectorAll('#curves svg [aria-label="y-axis tick label"] text')]
      .filter((text) => text.textContent !== '')
      .map((text) => [Number(text.textContent), text.getBoundingClientRect().top])"""
    watched.choose("curves", "log scale")
    shown = dict(page.evaluate(heights))
    assert {0.5, 1, 2} <= shown.keys()
    assert shown[0.5] - shown[1] == pytest.approx(shown[1] - shown[2], abs=1)


def test_each_line_is_named_after_what_it_draws(watched):
    watched.choose("curves", "training loss")
    curves = watched.data["curves"]
    named = {"this run": curves["run"]} | {
        f"arm: {arm['label']}": arm for arm in curves["arms"] if arm["kind"] == "arm"
    }
    named |= {arm["label"]: arm for arm in curves["arms"] if arm["kind"] == "twin"}
    named |= dict(zip(("host trained on", "static network"), curves["controls"], strict=True))
    assert len(named) == 8
    told, drawn = [], []
    for name, curve in named.items():
        told += zip(curve["steps"], curve["train_losses"], strict=True)
        drawn += points_of_line(watched.page, name)
    for values, places in zip(zip(*told, strict=True), zip(*drawn, strict=True), strict=True):
        assert abs(np.corrcoef(values, places)[0, 1]) > 1 - 1e-6


def test_the_twin_of_a_live_trial_is_no_arm(watched):
    page = watched.page
    page.locator("#curves svg.lines").focus()
    press_until(watched, "ArrowDown", "live trial")
    assert "End of the twin of live trial 1" in watched.tip
    assert "The run with its grafts went on." in watched.tip


def test_no_log_scale_of_what_is_no_loss(watched):
    tick = watched.page.locator("#curves").get_by_label("log scale")
    assert tick.is_enabled()
    watched.choose("curves", "accuracy")
    assert tick.is_disabled()


@pytest.mark.parametrize(("words", "column"), [("training loss", "train_losses"), ("accuracy", "val_metrics")])
def test_another_measure_can_be_chosen(watched, words, column):
    watched.choose("curves", words)
    told = point_at_end(watched, "this run")
    assert numbers(told.split(words)[1])[0] == pytest.approx(watched.data["curves"]["run"][column][-1], rel=1e-5)


def test_flags_tell_what_changed(watched):
    page, marks = watched.page, watched.data["curves"]["marks"]
    flags = page.locator("#curves svg .flag")
    assert flags.count() == len({mark["step"] for mark in marks})
    first = [mark for mark in marks if mark["step"] == marks[0]["step"]]
    told = watched.point(flags.first)
    assert f"Step {marks[0]['step']}" in told
    for mark in first:
        assert mark["label"] in told
        assert mark["reason"].replace("_", " ") in told


def test_each_graft_is_a_leaf(watched):
    page, grafts = watched.page, watched.data["anatomy"]["grafts"]
    kept = [graft for graft in grafts if graft["outcome"] == "FOSSILIZED"]
    assert page.locator("svg.anatomy .graft").count() == len(grafts)
    assert page.locator("svg.anatomy .graft.kept").count() == len(kept) == 1
    fill = "(leaf) => getComputedStyle(leaf).fill"
    assert page.locator("svg.anatomy .graft.kept .leaf").evaluate(fill) == variable(page, "--growth")
    assert page.locator("svg.anatomy .graft.refused .leaf").first.evaluate(fill) == variable(page, "--paper")


def test_a_leaf_tells_its_graft(watched):
    (graft,) = [one for one in watched.data["anatomy"]["grafts"] if one["outcome"] == "FOSSILIZED"]
    told = watched.point(watched.page.locator("svg.anatomy .graft.kept text").first)
    assert graft["label"] in told
    assert graft["parameters"] in numbers(told)
    assert graft["gain"]["mean"] in numbers(told)


def test_boxes_show_the_parameters_of_the_model(watched):
    page, anatomy = watched.page, watched.data["anatomy"]
    box = page.locator("svg.anatomy .module").first
    assert anatomy["modules"][0]["parameters"] in numbers(" ".join(box.locator("text").all_text_contents()))


def test_equal_blocks_are_folded_until_asked_for(watched):
    page = watched.page
    boxes = page.locator("svg.anatomy .module")
    folded = page.locator("svg.anatomy .module", has_text="\u00d7 Block").first
    before = boxes.count()
    assert before < 20
    folded.focus()
    page.keyboard.press("Enter")
    assert boxes.count() > before


def test_each_lane_shows_its_spans(watched):
    page, lanes = watched.page, watched.data["lanes"]
    rows = page.locator("svg.lanes .row")
    assert rows.count() == len(lanes)
    for row, lane in zip(rows.all(), lanes, strict=True):
        assert row.locator(".span").count() == len(lane["spans"])
    assert "kept" in rows.first.text_content()


def test_a_span_tells_state_steps_and_reason(watched):
    lane = watched.data["lanes"][0]
    span = next(span for span in lane["spans"] if span["state"] == "FINE_TUNING")
    told = watched.point(watched.page.locator("svg.lanes .row").first.locator(".span[aria-label^='fine tuning']"))
    assert [span["from"], span["to"]] == numbers(told.split("steps")[1])[:2]
    assert span["reason"] in told
    for gate, value in span["gates"].items():
        assert gate.replace("_", " ") in told
        assert value is True or value in numbers(told)


def test_spans_are_read_by_arrow_keys(watched):
    page = watched.page
    page.locator("svg.lanes .span[tabindex='0']").focus()
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") != first
    assert page.locator("svg.lanes [tabindex='0']").count() == 1


def test_worth_is_sorted_and_drawn_to_scale(watched):
    page = watched.page
    panel = page.locator("svg.worth").first
    worth = [row for row in watched.data["worth"] if row["against"] == watched.data["worth"][0]["against"]]
    means = sorted((row["mean"] for row in worth), reverse=True)
    dots = [float(dot.get_attribute("cx")) for dot in panel.locator("circle").all()]
    assert dots == sorted(dots, reverse=True)
    scale = (dots[0] - dots[-1]) / (means[0] - means[-1])
    for mean, dot in zip(means, dots, strict=True):
        assert dot - dots[-1] == pytest.approx((mean - means[-1]) * scale, abs=0.5)
    assert means[0] in numbers(watched.point(panel.locator("circle").first))
