"""What the first release promises of growth on digits, over ten seeds, with the defaults of ``esper run``."""

import pytest

from benchmarks.growth.cases import cases
from benchmarks.growth.cells import Job
from benchmarks.growth.rows import ROWS, shipped
from esper.evaluation import controls
from esper.evaluation.controls import Setting

(DIGITS,) = (case for case in cases() if case.name == "digits")
SEEDS = range(10)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of the grown run, and of the host trained on with recipes searched for every seed."""
    found = {"grown": [], "host_on": []}
    for seed in SEEDS:
        job = Job(tmp_path_factory.mktemp("cells"), DIGITS, "grown_default", shipped(DIGITS), seed)
        grown = ROWS["grown_default"].compute(job)
        setting = Setting(DIGITS.pace.batch_size, seed, seed)
        found["grown"].append(grown)
        found["host_on"].append(controls.host_on(job.load_task(), grown["train_flops"], setting).to_dict())
    return found


def test_at_least_eight_of_ten_grow(cells):
    assert sum(cell["kept"] > 0 for cell in cells["grown"]) >= 8


def test_every_run_that_grew_ends_at_a_lower_test_loss_than_the_host_trained_on(cells):
    pairs = zip(cells["grown"], cells["host_on"], strict=True)
    assert all(grown["test_loss"] < host_on["test_loss"] for grown, host_on in pairs if grown["kept"])


def test_growth_is_worth_at_least_two_points_over_all_ten(cells):
    means = {row: sum(cell["test_metric"] for cell in cells[row]) / len(SEEDS) for row in cells}
    assert means["grown"] - means["host_on"] >= 0.02


def test_both_train_for_equal_flops(cells):
    for grown, host_on in zip(cells["grown"], cells["host_on"], strict=True):
        assert host_on["train_flops"] == pytest.approx(grown["train_flops"], rel=0.01)
