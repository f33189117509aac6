"""Every row of the tables, end to end, on budgets of a few epochs."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.growth.cases import Case, cases
from benchmarks.growth.cells import Job, cell_path, read_cell
from benchmarks.growth.computing import compute_cell
from benchmarks.growth.rows import ROWS, compared_with, shipped
from benchmarks.growth.tables import compare, details, markdown
from tests.few import few

EPOCHS, LR, SEED = 16, 1e-2, 0
HERE = [row for row, kind in ROWS.items() if kind.obstacle(cases()[0]) is None]
FOLLOWERS = [row for row in HERE if ROWS[row].follows is not None]
EQUAL_FLOPS = [
    row for row in FOLLOWERS if row not in ("host_on_epochs", "static_epochs", "static_ceiling", "perforated")
]
EQUAL_SIZE = [
    "static",
    "static_epochs",
    "static_ceiling",
    "static_shape",
    "widened",
    "planted",
    "adapters",
    "sunk_static",
]


@pytest.fixture(scope="module")
def case() -> Case:
    (digits,) = (case for case in cases() if case.name == "digits")
    always = (("min_targets", 0),)  # a run of so few epochs would not try to grow
    return replace(digits, pace=digits.pace._replace(epochs=EPOCHS, lr=LR), wide=4.0, growth=always)


@pytest.fixture(scope="module")
def cell(case, tmp_path_factory):
    """What is asked for is computed, behind what it follows."""
    directory, recipe = tmp_path_factory.mktemp("cells"), shipped(case)

    def path_of(row: str) -> Path:
        path = cell_path(directory, case, row, recipe, SEED)
        if not path.exists():
            followed = ROWS[row].follows
            compute_cell(Job(directory, case, row, recipe, SEED, None if followed is None else path_of(followed)))
        return path

    return lambda row: read_cell(path_of(row))


@pytest.mark.parametrize(
    "row", few(HERE, ["grown", "ungated", "host_on", "static", "widened", "placebo", "sunk_grown"])
)
def test_a_cell_tells_what_the_tables_need(cell, row):
    found = cell(row)
    assert found["machine"]["torch"]
    assert found["parameters"] > 0
    assert found["test_loss"] > 0
    assert 0 < found["test_metric"] <= 1
    assert found["curve"]["flops"][-1] <= found["train_flops"]
    assert found["curve"]["flops"] == sorted(found["curve"]["flops"])
    assert (found["lr"], found["schedule"]) == (LR, "cosine")


def test_the_grown_run_has_grown(cell):
    """Else the rows that follow it would show nothing here: take another seed, or more epochs."""
    assert cell("grown")["kept"] > 0
    assert cell("ungated")["kept"] > 0


@pytest.mark.parametrize("row", few(EQUAL_FLOPS, ["host_on", "static", "widened"]))
def test_rows_of_equal_flops_have_them(cell, row):
    grown = cell(ROWS[row].follows)
    assert abs(cell(row)["train_flops"] / grown["train_flops"] - 1) <= 0.02


@pytest.mark.parametrize("row", few(EQUAL_SIZE, ["static", "static_shape", "widened"]))
def test_rows_of_equal_size_have_it(cell, row):
    assert abs(cell(row)["parameters"] / cell(ROWS[row].follows)["parameters"] - 1) <= 0.02


def test_the_ceiling_has_twice_the_flops_and_equal_epochs_are_the_grown_runs(cell):
    assert cell("static_ceiling")["train_flops"] == pytest.approx(2 * cell("grown")["train_flops"], rel=0.01)
    for row in ("host_on_epochs", "static_epochs"):
        assert cell(row)["curve"]["steps"][-1] == cell("grown")["steps"]


def test_the_other_shape_is_deeper(cell):
    assert cell("static_shape")["test_loss"] != cell("static")["test_loss"]


def test_sunk_rows_begin_with_a_trained_host(cell):
    """The host trained for a whole run starts far below one that was not."""
    first = {row: cell(row)["curve"]["val_losses"][0] for row in ("sunk_grown", "grown", "sunk_host_on", "host_on")}
    assert first["sunk_grown"] < first["grown"]
    assert first["sunk_host_on"] < first["host_on"]


def test_the_wide_host_is_wider(cell):
    assert cell("wide_grown")["parameters"] > 4 * cell("host_on")["parameters"]
    assert cell("wide_host_on")["parameters"] > 4 * cell("host_on")["parameters"]


def test_a_random_place_is_one_candidate_at_a_time(cell):
    births = [report["born_step"] for report in cell("random_place")["lifecycles"]]
    assert len(births) == len(set(births)) > 0


@pytest.mark.long
@pytest.mark.parametrize("row", HERE)
def test_every_row_finds_its_line_in_a_table(cell, row):
    grown = compared_with(row)
    table = compare({SEED: cell(grown)}, {grown: {SEED: cell(grown)}, row: {SEED: cell(row)}})
    assert f"| {row}" in markdown("digits", table)
    assert f"| {row} |" in details(table)


@pytest.mark.parametrize("row", ["widened", "lora", "gromo", "perforated"])
def test_rows_for_perceptrons_say_so_elsewhere(row):
    (cnn,) = (case for case in cases() if case.name == "mnist1d-cnn")
    assert ROWS[row].obstacle(cnn) is not None
