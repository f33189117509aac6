"""Runs side by side: paired where they were tested on the same samples, and honest where they were not."""

import json
import math

import numpy as np
import pytest
import torch

from esper.observability.cited import Cited
from esper.observability.compare import compare, labels_of, text
from esper.observability.record import read
from esper.runtime.judging.worth import paired_gain
from tests.observability import directories
from tests.observability.directories import lifecycle, result, row

FOSSIL = lifecycle(1, outcome="FOSSILIZED", reason="gate passed")
N = 40
LOSSES = {name: np.random.default_rng(seed).gamma(2.0, 0.1, N).astype(np.float32) for seed, name in enumerate("ab")}
LOSSES |= {"half": LOSSES["a"] / 2, "nan": np.where(LOSSES["b"] > 0.3, np.nan, LOSSES["b"])}
CORRECT = {name: (losses < 0.25).astype(np.float32) for name, losses in LOSSES.items()}


def _run(root, name, *, digest="one", groups=None, which="a", task="digits", **fields):
    samples = {"grown.loss": LOSSES[which], "grown.correct": CORRECT[which]}
    if groups is not None:
        samples["groups"] = np.asarray(groups)
    grown = row(float(LOSSES[which].mean()), float(CORRECT[which].mean()), 1292)
    found = result([FOSSIL], grown=grown, test_set={"samples": N, "digest": digest})
    return directories.finished(root / name, **{"result": found | {"task": task}, "samples": samples, **fields})


def _compared(*paths):
    return compare([read(path) for path in paths])


def _remarks(comparison):
    return " ".join(map(str, comparison.remarks))


def _numbers(cell):
    return [part for part in cell if isinstance(part, Cited)]


@pytest.mark.parametrize("groups", [None, [index // 3 for index in range(N)]])
def test_runs_tested_on_the_same_samples_are_paired(tmp_path, groups):
    groups = groups and np.asarray(groups, dtype=np.int64)
    runs = [_run(tmp_path, name, which=name, groups=groups) for name in "ab"]
    mean, low, high = _numbers(_compared(*runs).rows[1].cells[-2])
    a, b = (torch.as_tensor(LOSSES[name]).double() for name in "ab")
    told = paired_gain(b, a, None if groups is None else torch.as_tensor(groups))
    assert mean.value == pytest.approx(told.mean)
    assert (high.value - low.value) / 2 == pytest.approx(1.96 * told.error, rel=1e-3)
    assert low.value + high.value == pytest.approx(2 * mean.value)


def test_every_number_is_what_its_sources_say(tmp_path):
    runs = [_run(tmp_path, name, which=name, groups=np.arange(N) // 2) for name in "ab"]
    (tmp_path / "b" / "result.json").rename(tmp_path / "kept")
    trained = _compared(*runs)
    log = (tmp_path / "b" / "audit.jsonl").read_text()
    (tmp_path / "b" / "audit.jsonl").write_text("".join(log.splitlines(keepends=True)[:-1]))
    unfinished = _compared(*runs)
    (tmp_path / "b" / "audit.jsonl").write_text(log)
    (tmp_path / "kept").rename(tmp_path / "b" / "result.json")
    numbers = [
        number
        for comparison in (_compared(*runs), trained, unfinished)
        for one in comparison.rows
        for cell in one.cells
        for number in _numbers(cell)
    ]
    assert {number.how for number in numbers} >= {"value", "count", "ratio", "paired_mean", "paired_low", "paired_high"}
    for number in numbers:
        assert directories.evaluated(tmp_path, number.how, list(number.sources)) == pytest.approx(
            number.value, abs=1e-6
        )
    swapped = [number for number in numbers if number.how == "paired_mean"]
    for number in swapped:  # the check above tells the order of the runs
        assert directories.evaluated(tmp_path, number.how, list(number.sources[::-1])) == pytest.approx(-number.value)
        assert abs(number.value) > 1e-3


def test_a_positive_gain_is_a_better_run(tmp_path):
    runs = [_run(tmp_path, name, which=name) for name in ("a", "half")]
    cells = _compared(*runs).rows[1].cells
    assert _numbers(cells[-2])[0].value > 0
    assert _numbers(cells[-1])[0].value > 0
    assert _numbers(_compared(*runs[::-1]).rows[1].cells[-2])[0].value < 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digest": "other"}, "No interval for b: they were tested on different samples."),
        ({"samples": None}, "No interval for b: samples.safetensors is missing in b."),
        (
            {"samples": {"grown.loss": np.ones(3, np.float32)}},
            "No interval for b: the results of their samples do not fit",
        ),
        ({"samples": {"other": np.ones(3, np.float32)}}, "the results of their samples do not fit together."),
        ({"which": "nan"}, "the results of their samples are not all finite."),
    ],
)
def test_why_there_is_no_interval_is_said(tmp_path, change, says):
    changed = {"which": "b", **change}
    if changed["which"] == "nan":
        changed["result"] = result([FOSSIL], test_set={"samples": N, "digest": "one"})
    comparison = _compared(_run(tmp_path, "a"), _run(tmp_path, "b", **changed))
    assert says in _remarks(comparison)
    (plain,) = _numbers(comparison.rows[1].cells[-2])
    assert plain.how == "difference"
    assert math.isfinite(plain.value)


def test_samples_that_are_damaged_are_said(tmp_path):
    runs = [_run(tmp_path, name, which=name) for name in "ab"]
    (runs[1] / "samples.safetensors").write_bytes(b"\x00" * 5)
    assert "No interval for b: samples.safetensors is damaged in b." in _remarks(_compared(*runs))


def test_runs_of_an_older_version_have_no_interval(tmp_path):
    runs = [directories.finished(tmp_path / name, result=result([FOSSIL])) for name in "ab"]
    assert "which test samples were used was not recorded" in _remarks(_compared(*runs))


def test_different_tasks_are_not_compared(tmp_path):
    comparison = _compared(_run(tmp_path, "a"), _run(tmp_path, "b", task="mnist1d"))
    assert "The tasks differ (digits and mnist1d): their losses cannot be compared." in _remarks(comparison)
    assert [str(cell) for cell in comparison.rows[1].cells[-2:]] == ["-", "-"]


def test_a_task_that_is_not_known_yet_is_not_said_to_differ(tmp_path):
    config = directories.CONFIG | {"data": "text:play.txt"}
    runs = [_run(tmp_path, name, task="play", config=config) for name in "ab"]
    (runs[1] / "result.json").unlink()
    assert "tasks differ" not in _remarks(_compared(*runs))


def test_a_directory_named_twice_counts_once(tmp_path):
    run = _run(tmp_path, "a")
    (tmp_path / "link").symlink_to(run)
    comparison = _compared(run, tmp_path / "link", run)
    assert len(comparison.rows) == 1
    assert "named more than once and is shown once" in _remarks(comparison)
    assert "nothing to compare it with" in _remarks(comparison)
    assert "digits" in text(comparison)


def test_unfinished_and_damaged_runs_are_shown_as_far_as_known(tmp_path):
    whole, cut, damaged = (_run(tmp_path, name) for name in ("whole", "cut", "damaged"))
    (cut / "result.json").unlink()
    for name in ("metrics.jsonl", "audit.jsonl"):
        (cut / name).write_text("".join((cut / name).read_text().splitlines(keepends=True)[:2]))
    (damaged / "result.json").write_text("{")
    (damaged / "config.yaml").write_text("[")
    comparison = _compared(whole, cut, damaged)
    assert [str(one.cells[3]) for one in comparison.rows] == ["finished", "unfinished, 50%", "damaged"]
    assert [str(one.cells[0]) for one in comparison.rows] == ["digits", "digits", "?"]
    assert "Not all of damaged could be read: config.yaml is not valid YAML" in _remarks(comparison)
    assert "Not all of cut" not in _remarks(comparison)
    assert "no gain over it can be told" in _remarks(_compared(cut, whole))


def test_a_trained_run_without_a_result_tells_what_its_log_ends_with(tmp_path):
    runs = [_run(tmp_path, name) for name in "ab"]
    (runs[1] / "result.json").unlink()
    with (runs[1] / "audit.jsonl").open("a") as log:
        log.write(json.dumps({"event": "field_report", "step": 75, **FOSSIL}) + "\n")
    cells = _compared(*runs).rows[1].cells
    assert [str(cell) for cell in cells[3:8]] == ["trained", "grew 1", "-", "0.0 k", "-"]


def test_a_run_whose_loss_is_not_finite_is_not_compared(tmp_path):
    runs = [_run(tmp_path, name, which=name) for name in "ab"]
    broken = json.loads((runs[1] / "result.json").read_text())
    broken["rows"]["grown"]["test_loss"] = None
    (runs[1] / "result.json").write_text(json.dumps(broken))
    comparison = _compared(*runs)
    assert [str(cell) for cell in comparison.rows[1].cells[-2:]] == ["-", "-"]
    assert "The test loss of b is not finite: it is not compared." in _remarks(comparison)


@pytest.mark.parametrize(
    ("lifecycles", "says"), [([FOSSIL, FOSSIL], "grew 2"), ([lifecycle(1)], "grew nothing"), ([], "tried nothing")]
)
def test_the_outcome_is_told(tmp_path, lifecycles, says):
    run = directories.finished(tmp_path / "a", result=result(lifecycles))
    assert str(_compared(run).rows[0].cells[4]) == says


def test_options_that_differ_are_listed(tmp_path):
    growth = {"max_rounds": 1, "gate_z": 2.33, "layers": ["0", "2"]}
    other = directories.CONFIG | {"lr": 0.01, "controls": False, "output": "elsewhere", "growth": growth}
    comparison = _compared(_run(tmp_path, "a"), _run(tmp_path, "b", config=other))
    assert comparison.settings == (
        ("lr", ("0.005", "0.01")),
        ("controls", ("yes", "no")),
        ("growth.max_rounds", ("2", "1")),
        ("growth.layers", ("not there", "0, 2")),
    )
    assert "growth.max_rounds" in text(comparison)
    assert "gate_z" not in text(comparison)


def test_options_that_are_not_known_do_not_differ(tmp_path):
    runs = [_run(tmp_path, name) for name in "abc"]
    (runs[1] / "config.yaml").unlink()
    (runs[2] / "config.yaml").write_text("lr: 0.1\n")
    settings = dict(_compared(*runs).settings)
    assert settings["lr"] == ("0.005", "?", "0.1")
    assert not _compared(*runs[:2]).settings


def test_curves_come_with_their_label(tmp_path):
    first, second = _compared(_run(tmp_path, "a"), _run(tmp_path, "b")).curves
    assert (first["label"], second["label"]) == ("a", "b")
    assert first["steps"] == [25, 50, 75, 100]
    assert first["flops"][0] == 1_000_000
    assert {len(first[name]) for name in ("train_losses", "val_losses", "val_metrics")} == {4}


def test_labels_are_as_short_as_they_can_be(tmp_path):
    paths = [tmp_path / name for name in ("x/run", "y/run", "z")]
    for path in paths:
        path.mkdir(parents=True)
    assert labels_of(paths) == ["x/run", "y/run", "z"]


def test_a_task_without_metric(tmp_path):
    runs = [directories.finished(tmp_path / name, result=result([], metric=None)) for name in "ab"]
    comparison = _compared(*runs)
    assert not any("accuracy" in heading for heading in comparison.headings)
    assert all(len(one.cells) == len(comparison.headings) - 1 for one in comparison.rows)


def test_the_text_shows_tables_options_and_remarks(tmp_path):
    told = text(_compared(*(_run(tmp_path, name, which=name) for name in "ab")))
    table, gains, remarks = told.split("\n\n")
    assert len({len(line) for line in table.splitlines()}) == 1
    assert gains.splitlines()[1].startswith("b")
    assert remarks.startswith("A gain is what a run is better by than the first one")


def test_long_values_are_cut_in_the_text_only(tmp_path):
    long = directories.CONFIG | {"data": "text:" + "x" * 50}
    comparison = _compared(_run(tmp_path, "a"), _run(tmp_path, "b", config=long))
    assert comparison.settings == (("data", ("digits", long["data"])),)
    assert "text:" + "x" * 22 + "...\n" in text(comparison) + "\n"
