"""The lattice: from all places to one seed and back, also with ten thousand seeds."""

import numpy as np
import pytest

from benchmarks.seeing.answering import BACK, CHOOSE, NOTICED_MS, fastest_ms, in_place, into_largest, ways
from tests.browser.conftest import visitor
from tests.browser.test_charts import numbers
from tests.observability.unpacking import unpack


def values_of(data) -> np.ndarray:
    """What the page packs: [measures, boundaries, seeds]."""
    return unpack(data["lattice"])[0]


def point_at(watched, row: int, column: int, rows: int, columns: int) -> None:
    """Move the pointer to the middle of a cell."""
    field, page = watched.page.locator("#lattice .field"), watched.page
    watched.point(page.locator("#lattice .crumbs"))
    box = field.bounding_box()
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / columns, box["y"] + (row + 0.5) * box["height"] / rows)


def crumbs(page) -> str:
    return page.locator("#lattice .crumbs").inner_text()


@pytest.fixture
def watched(grown, visit):
    return visit(grown)


def test_a_place_shows_the_median_of_its_seeds(watched):
    lattice, values_MBS = watched.data["lattice"], values_of(watched.data)
    row, column = 4, 7
    place = lattice["places"][row]
    own = values_MBS[0, column, place["first"] : place["first"] + place["seeds"]]
    point_at(watched, row, column, len(lattice["places"]), len(lattice["epochs"]))
    told = watched.tip
    assert place["label"] in told
    assert lattice["epochs"][column] in numbers(told.split("epoch")[1])
    assert numbers(told.split("median variance")[1])[0] == pytest.approx(np.median(own), rel=1e-5)


def test_a_seed_shows_its_own_value(watched):
    lattice, values_MBS = watched.data["lattice"], values_of(watched.data)
    page, row, seed, column = watched.page, 4, 6, 11
    place = lattice["places"][row]
    point_at(watched, row, 3, len(lattice["places"]), len(lattice["epochs"]))
    page.mouse.down()
    page.mouse.up()
    assert place["label"] in crumbs(page)
    watched.choose("lattice", "gradient")
    point_at(watched, seed, column, place["seeds"], len(lattice["epochs"]))
    measure = [one["key"] for one in lattice["measures"]].index("gradient_norm")
    assert f"{place['label']}, seed {seed}" in watched.tip
    assert numbers(watched.tip.split("gradient")[1])[0] == pytest.approx(
        values_MBS[measure, column, place["first"] + seed], rel=1e-5
    )


def test_from_all_places_to_one_seed_and_back_by_mouse(watched):
    page, lattice = watched.page, watched.data["lattice"]
    point_at(watched, 0, 0, len(lattice["places"]), len(lattice["epochs"]))
    page.locator("#lattice .field").click(position={"x": 5, "y": 2})
    assert "the whole model" in crumbs(page)
    page.locator("#lattice .field").click(position={"x": 5, "y": 2})
    assert "seed 0" in crumbs(page)
    charts = page.locator("#lattice .seed-charts svg[role=img]")
    assert charts.count() == len(lattice["measures"])
    page.locator("#lattice .crumbs").get_by_text("the whole model").click()
    assert "seed" not in crumbs(page)
    page.locator("#lattice .crumbs").get_by_text("all places").click()
    assert crumbs(page) == "all places"


def test_from_all_places_to_one_seed_and_back_by_keyboard(watched):
    page, lattice, values_MBS = watched.page, watched.data["lattice"], values_of(watched.data)
    page.locator("#lattice .map").focus()
    for key in ("ArrowDown",) * 4 + ("ArrowRight",) * 2:
        page.keyboard.press(key)
    place = lattice["places"][4]
    assert place["label"] in page.locator("#spoken").inner_text()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    own = values_MBS[0, 2, place["first"] + 1]
    assert numbers(watched.tip.split("variance")[1])[0] == pytest.approx(own, rel=1e-5)
    page.keyboard.press("Enter")
    assert "seed 1" in crumbs(page)
    page.keyboard.press("Escape")
    assert place["label"] in crumbs(page)
    assert "seed" not in crumbs(page)
    page.keyboard.press("Escape")
    assert crumbs(page) == "all places"
    page.keyboard.press("ArrowRight")
    assert place["label"] in page.locator("#spoken").inner_text()


def test_a_seed_s_charts_are_read_by_arrow_keys(watched):
    page, values_MBS = watched.page, values_of(watched.data)
    page.locator("#lattice .map").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.locator("#lattice .seed-charts svg[role=img]").first.focus()
    page.keyboard.press("End")
    assert numbers(watched.tip.split("variance")[1])[0] == pytest.approx(values_MBS[0, -1, 0], rel=1e-5)


def test_the_state_can_be_shown(watched):
    lattice = watched.data["lattice"]
    watched.choose("lattice", "state")
    point_at(watched, 0, 5, len(lattice["places"]), len(lattice["epochs"]))
    assert "fine tuning" in watched.tip


def test_the_map_is_painted_in_the_colours_of_the_values(watched):
    """Equal values have equal colours, and larger ones are darker."""
    lattice, values_MBS = watched.data["lattice"], values_of(watched.data)
    medians = np.array(
        [np.median(values_MBS[0, :, one["first"] : one["first"] + one["seeds"]], axis=1) for one in lattice["places"]]
    )
    pixels = watched.page.evaluate(
        "(() => { const canvas = document.querySelector('#lattice .field canvas');"
        " return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]; })()"
    )
    brightness = np.array(pixels).reshape(*medians.shape, 4)[..., :3] @ [0.299, 0.587, 0.114]
    assert np.corrcoef(np.log(medians).ravel(), brightness.ravel())[0, 1] < -0.95


SLOW = "() => { const end = performance.now() + 150; while (performance.now() < end); }"


@pytest.fixture(scope="module", params=["many_places", pytest.param("large_places", marks=pytest.mark.long)])
def opened(request, browser):
    """Ten thousand seeds in many places, and in few; opened once, for it takes long."""
    with visitor(browser) as visit:
        yield visit(request.getfixturevalue(request.param))


@pytest.fixture
def huge(opened):
    """The same page, at the level of all places."""
    for act in (BACK, BACK, CHOOSE.replace("INDEX", "0")):
        opened.page.evaluate(act)
    opened.page.locator("#lattice").scroll_into_view_if_needed()
    return opened


def test_all_places_of_a_large_model_answer(huge):
    for act in in_place(huge.data).values():
        huge.page.evaluate(act)
    assert crumbs(huge.page) == "all places"
    spoken = huge.page.locator("#spoken").inner_text()
    assert any(spoken.startswith(place["label"]) for place in huge.data["lattice"]["places"])


def test_the_seeds_of_one_of_its_places_answer(huge):
    huge.page.evaluate(into_largest(huge.data))
    assert "all places" in crumbs(huge.page) != "all places"
    for act in in_place(huge.data).values():
        huge.page.evaluate(act)
    assert "seed" in huge.page.locator("#spoken").inner_text()


def test_zooming_goes_there_and_back(huge):
    levels = [crumbs(huge.page)]
    for act in ways(huge.data).values():
        huge.page.evaluate(act)
        levels.append(crumbs(huge.page))
    assert ["seed " in level for level in levels] == [False, False, True, False, False]
    assert [level == "all places" for level in levels] == [True, False, False, False, True]


def test_a_slow_page_would_be_noticed_by_the_benchmark(huge):
    """How soon a page answers is measured by ``benchmarks.seeing``, whose clock counts what a handler takes."""
    assert fastest_ms(huge.page, {"slow": SLOW}, tries=2)["slow"] > NOTICED_MS
