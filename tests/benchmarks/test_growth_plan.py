"""The protocol: learning rates on seeds of their own, one recipe per row, and a benchmark that can be resumed."""

import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.growth.__main__ import write
from benchmarks.growth.cases import LADDER, Case, cases
from benchmarks.growth.cells import Job, fingerprint, write_cell, write_whole
from benchmarks.growth.computing import compute, forget
from benchmarks.growth.growing_rows import trained_host_path
from benchmarks.growth.plan import Plan
from benchmarks.growth.results import collected
from benchmarks.growth.rows import HEADLINE, ROWS, shipped
from esper.evaluation.training import Recipe
from tests import warm

(DIGITS,) = (case for case in cases() if case.name == "digits")
TINY = replace(DIGITS, pace=DIGITS.pace._replace(epochs=1), rates=(1e-3, 3e-3, 1e-2), tuning_seeds=(900, 901, 902))


def _finish(jobs: list[Job], losses: dict[Recipe, float | None]) -> None:
    """Cells as if they had been computed."""
    for job in jobs:
        numbers = {"val_loss": losses[job.recipe], "test_loss": 0.5, "test_metric": 0.9, "val_metric": 0.9}
        sizes = {"parameters": 10, "train_flops": 100, "seconds": 1.0, "probe_flops": 5, "kept": 1, "steps": 3}
        curve = {"flops": [100], "val_metrics": [0.9], "steps": [3]}
        about = {"lr": job.recipe.lr, "schedule": job.recipe.schedule}
        about |= {"followed": fingerprint(job.followed)}
        write_cell(job.path, numbers | sizes | about | {"curve": curve})


LOSSES: dict[Recipe, float | None] = {
    Recipe(1e-3, "cosine"): 0.5,
    Recipe(3e-3, "cosine"): 0.45,
    Recipe(1e-2, "cosine"): None,
    Recipe(1e-3, "constant_then_linear"): 0.4,
    Recipe(3e-3, "constant_then_linear"): 0.3,
    Recipe(1e-2, "constant_then_linear"): 0.4,
    shipped(TINY): 0.6,
}
BEST = Recipe(3e-3, "constant_then_linear")


def test_learning_rates_are_searched_on_seeds_that_no_table_uses(tmp_path):
    plan = Plan(tmp_path, [TINY])
    tuning = next(plan.phases())
    assert {job.seed for job in tuning} == set(TINY.tuning_seeds)
    assert not any(set(case.tuning_seeds) & set(plan.seeds_of(row)) for case in cases() for row in ROWS)
    searched = {row: {job.recipe for job in tuning if job.row == row} for row in ROWS}
    assert len(searched["grown"]) == len(searched["sunk_grown"]) == 6
    assert len(searched["placebo"]) == 3
    assert not searched["grown_default"]


def test_every_row_is_trained_by_the_recipe_that_was_best_on_select(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown",))
    phases = plan.phases()
    _finish(next(phases), LOSSES)
    final = next(phases)
    assert {job.recipe for job in final} == {BEST}
    assert [job.seed for job in final] == list(range(10))
    assert plan.tuning(TINY, "grown")["0.01 cosine"] is None


def test_the_search_goes_on_where_the_best_rate_is_at_an_end(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("placebo",))
    losses = {
        Recipe(lr, "cosine"): loss for lr, loss in {1e-3: 0.5, 3e-3: 0.6, 1e-2: 0.4, 3e-2: 0.3, 1e-1: 0.9}.items()
    }
    tried = []
    for jobs in plan.phases():
        tried.append({job.recipe.lr for job in jobs})
        _finish(jobs, losses)
    assert tried[:4] == [{1e-3, 3e-3, 1e-2}, {3e-2}, {1e-1}, {3e-2}]
    assert plan.choice(TINY, "placebo") == Recipe(3e-2, "cosine")


def test_the_search_ends_where_the_ladder_ends(tmp_path):
    plan = Plan(tmp_path, [replace(TINY, rates=LADDER[:3])], rows=("placebo",))
    (case,) = plan.cases
    _finish(next(plan.phases()), {Recipe(lr, "cosine"): lr for lr in LADDER})
    assert plan.choice(case, "placebo") == Recipe(LADDER[0], "cosine")


def test_no_recipe_is_chosen_before_all_were_tried(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "static"))
    phases = plan.phases()
    tuning = next(phases)
    _finish(tuning[1:], LOSSES)
    assert next(phases) == []
    assert plan.choice(TINY, "grown") is None
    assert plan.waiting() == {
        "digits, grown": "its learning rate is not searched yet; missing: digits, grown, 0.001-cosine, seed 900",
        "digits, static": "follows grown, which is not there yet",
    }


def test_controls_follow_the_grown_cell_of_the_same_seed_by_its_own_recipe(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "static"))
    phases = plan.phases()
    for _ in range(2):
        _finish(next(phases), LOSSES)
    tuning = next(phases)
    assert {(job.row, job.seed) for job in tuning} == {("static", seed) for seed in TINY.tuning_seeds}
    for job in tuning:
        assert job.followed == Job(tmp_path, TINY, "grown", BEST, job.seed).path


def test_a_control_without_its_grown_run_is_left_for_later(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "static"))
    phases = plan.phases()
    for _ in range(2):
        _finish(next(phases), LOSSES)
    Job(tmp_path, TINY, "grown", BEST, 4).path.unlink()
    _finish(next(phases), LOSSES)
    assert {job.seed for job in next(phases)} == set(range(10)) - {4}


def test_a_control_of_a_grown_run_that_was_computed_anew_is_computed_anew_too(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "static"))
    for jobs in plan.phases():
        _finish(jobs, LOSSES)
    static = [
        Job(tmp_path, TINY, "static", BEST, seed, Job(tmp_path, TINY, "grown", BEST, seed).path) for seed in (0, 4)
    ]
    assert all(job.is_finished for job in static)
    grown = static[1].grown()
    write_cell(Job(tmp_path, TINY, "grown", BEST, 4).path, grown | {"train_flops": 2 * grown["train_flops"]})
    assert [job.is_finished for job in static] == [True, False]
    assert collected(plan)["tasks"]["digits"]["static"]["by_seed"].keys() == set(range(10)) - {4}


def test_all_cases_have_the_main_rows_and_two_have_all():
    plan = Plan(Path(), cases(Path("text")))
    rows = {case.name: tuple(plan.rows_of(case)) for case in plan.cases}
    assert rows["digits"] == rows["mnist1d"] == tuple(ROWS)
    assert rows["mnist1d-cnn"] == rows["text-mlp"] == rows["text-gpt"] == HEADLINE


def test_results_are_collected_from_cells_alone(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "static", "sunk_grown", "sunk_static"))
    for jobs in plan.phases():
        _finish(jobs, LOSSES)
    results = collected(plan)
    assert list(results["tasks"]["digits"]) == ["grown", "static"]
    assert list(results["others"]["digits"]) == ["sunk_grown"]
    claimed = [(one["against"], one["measure"], one["margin"]) for one in results["claims"]["headline"]]
    assert claimed == [("static", "accuracy", 1.5), ("static", "accuracy", None), ("static", "loss", None)]
    assert [one["against"] for one in results["claims"]["sunk cost"]] == ["sunk_static"] * 2
    assert results["settings"]["digits"]["search"]["static"]["0.003 constant_then_linear"] == 0.3
    assert results["tasks"]["digits"]["static"]["by_seed"].keys() == set(range(10))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A whole benchmark of one epoch a run, and a case whose data do not exist."""
    directory = tmp_path_factory.mktemp("growth")
    rates = (1e-2, 3e-2, 1e-1)  # the best is between them, and the search need not go on
    case = replace(TINY, rates=rates, schedules=("cosine",))
    lost = Case("lost", str(directory / "lost.npz"), "mlp", TINY.pace, rates=TINY.rates, schedules=("cosine",))
    plan = Plan(directory, [case, lost], ("grown", "grown_default", "host_on"), seeds=(0, 1), tuning_seeds=(900,))
    return plan, compute(plan, workers=1)


def test_it_computes_every_cell(computed):
    plan, _ = computed
    found = {path.relative_to(plan.directory / "cells").parts for path in plan.directory.glob("cells/**/*.json")}
    counts = Counter(parts[1] for parts in found)
    searched = {row: len(plan.recipes(plan.cases[0], row)) for row in ("grown", "host_on")}
    assert counts == {row: count + 2 for row, count in searched.items()} | {"grown_default": 2}
    assert {int(parts[3][:3]) for parts in found} == {0, 1, 900}
    assert multiprocessing.active_children() == []


def test_a_cell_that_fails_is_named_and_the_others_are_computed(computed):
    plan, failed = computed
    assert len(failed) == 3 + 2
    assert all(name.startswith("lost, ") for name in failed)
    assert plan.waiting()["lost, host_on"] == "follows grown, which is not there yet"


def test_what_is_finished_is_not_computed_again(computed, capsys):
    plan, _ = computed
    digits = replace(plan, cases=plan.cases[:1])
    before = {path: path.stat().st_mtime_ns for path in plan.directory.glob("cells/**/*.json")}
    assert compute(digits, workers=1) == []
    assert {path: path.stat().st_mtime_ns for path in plan.directory.glob("cells/**/*.json")} == before
    assert capsys.readouterr().out == ""


def test_results_and_pictures_are_written(computed):
    plan, _ = computed
    write(plan)
    results = json.loads((plan.directory / "results.json").read_text())
    assert list(results["tasks"]) == ["digits"]
    assert results["machines"][0]["torch"]
    assert str(plan.directory) not in json.dumps(results)
    names = {path.name for path in (plan.directory / "pictures").iterdir()}
    assert names == {"digits-train_flops.svg", "digits-parameters.svg"}


def test_only_what_the_plan_would_compute_is_forgotten(tmp_path):
    plan = Plan(tmp_path, [TINY], rows=("grown", "sunk_grown", "placebo"))
    for jobs in plan.phases():
        _finish(jobs, LOSSES)
    host = trained_host_path(tmp_path, TINY, 3)
    write_whole(host, lambda path: path.write_bytes(b""))
    forget(replace(plan, rows=("sunk_grown",), seeds=(3, 4)))
    left = [path.relative_to(tmp_path / "cells").parts for path in tmp_path.glob("cells/**/*.json")]
    assert {int(parts[3][:3]) for parts in left if parts[1] == "sunk_grown"} == {*range(10)} - {3, 4}
    assert Counter(parts[1] for parts in left) == {"grown": 18 + 10, "sunk_grown": 8, "placebo": 9 + 5}
    assert not host.exists()
    forget(plan)
    assert not list(tmp_path.glob("cells/**/*.json"))


def test_a_part_of_the_tables_never_replaces_more(computed, capsys):
    plan, _ = computed
    write(plan)
    published = (plan.directory / "results.json").read_text()
    write(replace(plan, seeds=(0,)))
    assert "stays as it is" in capsys.readouterr().out
    (plan.directory / "results.json").write_text(published.replace('"0": {', '"7": {'))
    write(plan)
    assert "digits, grown" in capsys.readouterr().out
    (plan.directory / "results.json").write_text(published)
    write(replace(plan, cases=plan.cases[1:]))
    assert "digits, host_on" in capsys.readouterr().out
    assert (plan.directory / "results.json").read_text() == published


def test_cells_of_another_file_are_not_taken_for_those_of_this_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, content in {"a": b"one text", "b": b"another"}.items():
        (tmp_path / name / "text").write_bytes(content)
    one, other = (replace(TINY, name="text", data=f"text:{tmp_path / name / 'text'}") for name in "ab")
    longer = replace(one, pace=one.pace._replace(epochs=2))
    trained_slower = replace(one, trained=replace(one.trained, lr=1e-4))
    job = Job(tmp_path, one, "grown", BEST, 0)
    _finish([job], LOSSES)
    assert job.is_finished
    for case in (other, longer, trained_slower, replace(one, host="cnn"), replace(one, wide=3.0)):
        assert not replace(job, case=case).is_finished
        assert trained_host_path(tmp_path, one, 0) != trained_host_path(tmp_path, case, 0)
    for same in (replace(one, rates=LADDER), replace(one, pace=one.pace._replace(lr=1e-4))):  # recipes tell their rate
        assert replace(job, case=same).is_finished
    assert shipped(replace(one, pace=one.pace._replace(lr=1e-4))) != shipped(one)


def test_seeds_that_are_none_are_refused():
    done = warm.run(["-m", "benchmarks.growth", "--seeds", "4-1", "--tables"], folder=Path(__file__).parents[2])
    assert done.returncode == 2
    assert "--seeds" in done.stderr


@pytest.mark.long
def test_one_command_makes_a_table_of_any_file(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 6))
    np.savez(tmp_path / "signs.npz", x=x, y=x[:, 0] * x[:, 1] > 0)
    command = [sys.executable, "-m", "benchmarks.growth", "--npz", tmp_path / "signs.npz", "--cases", "signs"]
    command += ["--rows", "grown_default", "--seeds", "0-1", "--workers", "1", "--output", tmp_path]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "2 of 2 cells" in done.stdout
    assert "FAILED" not in done.stdout
    assert sorted(path.name for path in tmp_path.glob("cells/signs-*/**/*.json")) == ["000.json", "001.json"]
    assert json.loads((tmp_path / "results.json").read_text())["settings"].keys() == {"signs"}
