"""Data that comes with Python and scikit-learn, and growth on it."""

import json

import numpy as np
import pytest

from benchmarks.growth.other_data import ROWS, main, markdown, table
from benchmarks.growth.other_data_sets import DATA_SETS, MOST_ROWS, QUANTITIES, TABLES, write
from esper.tasks.catalogue import load_task


@pytest.mark.parametrize("name", DATA_SETS)
def test_esper_run_takes_every_data_set(tmp_path, name):
    task = load_task(write(name, tmp_path), seed=0, task="regression" if name in QUANTITIES else "auto")
    assert len(task.train.y) >= 100
    assert task.metric == "R2" if name in QUANTITIES else task.num_classes >= 2


@pytest.mark.parametrize("name", TABLES)
def test_a_file_holds_numbers_and_is_the_same_every_time(tmp_path, name):
    first, second = (np.load(write(name, folder)) for folder in (_made(tmp_path / "1"), _made(tmp_path / "2")))
    assert len(first["x"]) == len(first["y"]) <= MOST_ROWS
    assert first["x"].dtype.kind in "iuf"
    assert all(np.array_equal(first[part], second[part]) for part in ("x", "y"))


@pytest.mark.parametrize("name", ["modules", "tokens", "characters"])
def test_the_large_sets_have_enough_samples_to_judge(tmp_path, name):
    task = load_task(write(name, tmp_path), seed=0)
    assert 0.6 * len(task.held_out.y) >= 500


def test_a_table_tells_grown_minus_row_seed_by_seed():
    def row(accuracy, loss):
        return {"parameters": 10, "train_flops": 100, "test_metric": accuracy, "test_loss": loss}

    def result(grown, other):
        rows = dict.fromkeys(ROWS, grown) | {"host_on": other}
        return {"rows": rows, "samples": {"train": 5}, "kept": [1]}

    found = table([result(row(0.9, 1.0), row(0.8, 1.5)), result(row(0.7, 1.0), row(0.8, 0.5))])
    assert found["fossilised"] == 2
    assert found["rows"]["host_on"]["points_gained"][0] == pytest.approx(0.0)
    assert found["rows"]["host_on"]["loss_difference"][0] == pytest.approx(0.0)
    assert found["rows"]["host_on"]["won_on_loss"] == 1
    assert found["rows"]["static"]["won_on_loss"] == 0
    assert "grown (grew 2 of 2)" in markdown({"name": found})


def test_results_that_were_published_stay_where_only_other_data_are_computed(tmp_path):
    row = {"parameters": 10, "train_flops": 100, "test_metric": 0.5, "test_loss": 1.0}
    result = {"rows": dict.fromkeys(ROWS, row), "samples": {"train": 5}, "kept": [], "machine": {"cores": 2}}
    published = {"by_seed": {"wine": {"3000": result}}}
    (tmp_path / "other_data.json").write_text(json.dumps(published))
    assert main(["--tables", "--output", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "other_data.json").read_text())
    assert again["by_seed"]["wine"] == published["by_seed"]["wine"]
    assert again["data"]["wine"]["metric"] == "accuracy"


@pytest.mark.long
def test_rows_have_equal_flops_static_networks_the_grown_size_and_default_rows_no_search(tmp_path):
    common = ["--data", "modules", "--seeds", "1", "--epochs", "1", "--workers", "1", "--output", str(tmp_path)]
    assert main(common) == 0
    results = json.loads((tmp_path / "other_data.json").read_text())
    rows = results["by_seed"]["modules"]["3000"]["rows"]
    assert list(rows) == list(ROWS)
    for name, row in rows.items():
        assert row["train_flops"] == pytest.approx(rows["grown"]["train_flops"], rel=0.02)
        if name.startswith("static"):
            assert row["parameters"] == pytest.approx(rows["grown"]["parameters"], rel=0.05)
        if name.endswith("_default"):
            assert (row["lr"], row["schedule"]) == (rows["grown"]["lr"], rows["grown"]["schedule"])
    assert (tmp_path / "runs" / "other_data" / "modules.jsonl").read_text().count("\n") == 1


def _made(folder):
    folder.mkdir()
    return folder
