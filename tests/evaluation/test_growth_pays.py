"""What the first release promises of growth on digits, over ten seeds, with the defaults of ``esper run``."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks.growth.cases import cases
from benchmarks.growth.cells import cell_path, run_rows

(DIGITS,) = (case for case in cases(None) if case.name == "digits")
SEEDS = range(10)
ROWS = ("grown", "host_on")

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cells")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(run_rows, *zip(*((directory, DIGITS, ROWS, seed) for seed in SEEDS), strict=True)))
    return {
        row: [json.loads(cell_path(directory, DIGITS.name, row, seed).read_text()) for seed in SEEDS] for row in ROWS
    }


def test_at_least_eight_of_ten_grow(cells):
    assert sum(cell["kept"] > 0 for cell in cells["grown"]) >= 8


def test_every_run_that_grew_ends_at_a_lower_test_loss_than_the_host_trained_on(cells):
    pairs = zip(cells["grown"], cells["host_on"], strict=True)
    assert all(grown["test_loss"] < host_on["test_loss"] for grown, host_on in pairs if grown["kept"])


def test_growth_is_worth_at_least_two_points_over_all_ten(cells):
    means = {row: sum(cell["test_metric"] for cell in cells[row]) / len(SEEDS) for row in ROWS}
    assert means["grown"] - means["host_on"] >= 0.02


def test_both_train_for_equal_flops(cells):
    for grown, host_on in zip(cells["grown"], cells["host_on"], strict=True):
        assert host_on["train_flops"] == pytest.approx(grown["train_flops"], rel=0.01)
