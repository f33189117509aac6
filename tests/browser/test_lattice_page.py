"""The lattice: from all places to one seed and back, and fast also with ten thousand seeds."""

import statistics

import numpy as np
import pytest

from tests.browser.test_charts import numbers
from tests.observability.unpacking import unpack

NOTICED_MS = 100


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
MEASURE = """() => {
  const all = [...document.querySelectorAll('#lattice input[type=radio]')];
  all[(all.findIndex((one) => one.checked) + 1) % all.length].click();
}"""
ZOOM = """() => {
  const field = document.querySelector('#lattice .field');
  const box = field.getBoundingClientRect();
  const clientY = box.top + (ROW + 0.5) * box.height / ROWS;
  field.dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: box.left + 50, clientY }));
}"""
BACK = """() => document.querySelector('#lattice .drawing').dispatchEvent(
  new KeyboardEvent('keydown', { key: 'Escape', bubbles: true }))"""
SLOW = "() => { const end = performance.now() + 150; while (performance.now() < end); }"


def milliseconds(page, act: str) -> float:
    return page.evaluate(TIMED.replace("ACT", act))


def zoom(row: int, rows: int) -> str:
    """A click on a row of all rows."""
    return ZOOM.replace("ROWS", str(rows)).replace("ROW", str(row))


@pytest.fixture(params=["many_places", "large_places"])
def huge(request, visit):
    """Ten thousand seeds in many places, and in few."""
    watched = visit(request.getfixturevalue(request.param))
    watched.page.locator("#lattice").scroll_into_view_if_needed()
    watched.page.wait_for_timeout(1500)
    return watched


@pytest.fixture
def into_largest(huge) -> str:
    """A click on the place with the most seeds."""
    seeds = [place["seeds"] for place in huge.data["lattice"]["places"]]
    return zoom(seeds.index(max(seeds)), len(seeds))


@pytest.mark.parametrize("act", [HOVER, CURSOR, MEASURE], ids=["hover", "cursor", "measure"])
def test_all_places_answer_at_once(huge, act):
    taken = [milliseconds(huge.page, act) for _ in range(7)]
    assert statistics.median(taken) < NOTICED_MS, taken


@pytest.mark.parametrize("act", [HOVER, CURSOR, MEASURE], ids=["hover", "cursor", "measure"])
def test_the_seeds_of_one_place_answer_at_once(huge, into_largest, act):
    milliseconds(huge.page, into_largest)
    taken = [milliseconds(huge.page, act) for _ in range(7)]
    assert statistics.median(taken) < NOTICED_MS, taken


def test_zooming_answers_at_once(huge, into_largest):
    into_place, into_seed, out = [], [], []
    for _ in range(5):
        into_place.append(milliseconds(huge.page, into_largest))
        assert "seed" not in crumbs(huge.page)
        into_seed.append(milliseconds(huge.page, zoom(1, 100)))
        assert "seed" in crumbs(huge.page)
        out += [milliseconds(huge.page, BACK), milliseconds(huge.page, BACK)]
        assert crumbs(huge.page) == "all places"
    for taken in (into_place, into_seed, out):
        assert statistics.median(taken) < NOTICED_MS, taken


def test_a_slow_page_would_be_noticed(huge):
    """The clock of the tests above counts what a handler takes."""
    assert milliseconds(huge.page, SLOW) > NOTICED_MS
