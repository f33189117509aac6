"""Transformers on the texts of the environment: what is read, how long, and what is said of it."""

import argparse
import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.growth import computing, environment, going_on, source
from benchmarks.growth.cases import cases
from benchmarks.growth.cells import fingerprint, read_cell, write_cell
from benchmarks.growth.computing import compute
from benchmarks.growth.environment import Gathered, gathered, recorded
from benchmarks.growth.goals import Better, NoWorse, Refused, told
from benchmarks.growth.growing_rows import trained_host_path
from benchmarks.growth.plan import Plan
from benchmarks.growth.rows import ROWS
from benchmarks.growth.short import in_nats
from benchmarks.growth.sized import EPOCHS, QUICK, SIZES, case_of, main, write
from esper.contracts.errors import ConfigError
from esper.evaluation.training import Recipe
from esper.tasks.folder import folder

ROOT = Path(__file__).parents[2]
TEXTS = Gathered("nowhere", "0123456789abcdef", 3, 1000)
OPTIONS = argparse.Namespace(
    bytes_per_parameter=None, rates=None, batch=64, precision="fp32", compile=False, device="cpu"
)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An environment of few files."""
    files = {
        "lib/python/os.py": "import a\n" * 80,
        "lib/python/.hidden.py": "hidden",
        "lib/python/site-packages/other/of_another.py": "another environment",
        "packages/torch/nn.py": "import b\n" * 90,
        "packages/torch/json.py": "import c\n" * 70,
        "packages/torch/include/torch.h": "int a;",
        "packages/torch/LICENSE": "Permission is hereby granted",
        "packages/torch/data.bin": "no text",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    places = {"stdlib": "lib/python", "purelib": "packages", "platlib": "packages"}
    found = {name: str(tmp_path / place) for name, place in places.items()}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: found)
    monkeypatch.setattr(environment, "FURTHER_ROOTS", {})
    return tmp_path


def _names(texts: Gathered) -> list[str]:
    return sorted(str(path.relative_to(texts.path)) for path in Path(texts.path).rglob("*") if path.is_file())


def test_texts_of_a_kind_are_linked_and_those_of_other_environments_are_not(installed):
    found = {
        kind: _names(gathered(kind, installed / "links", installed / "out")) for kind in ("python", "c", "english")
    }
    assert found == {
        "python": ["0/os.py", "1/torch/json.py", "1/torch/nn.py"],
        "c": ["1/torch/include/torch.h"],
        "english": ["1/torch/LICENSE"],
    }
    assert recorded("python", installed / "out").size_bytes == sum(
        (installed / name).stat().st_size
        for name in ("lib/python/os.py", "packages/torch/nn.py", "packages/torch/json.py")
    )


def test_links_are_read_as_a_folder_of_texts(installed):
    task = folder(gathered("python", installed / "links", installed / "out").path, 0, context=8)
    assert b"import " in bytes(task.train.x.flatten().tolist())
    assert task.told[0].startswith("whole files: ")


def test_other_texts_have_another_digest_and_are_refused_where_figures_of_the_first_lie(installed):
    first = gathered("python", installed / "links", installed / "out")
    assert gathered("python", installed / "again", installed / "out").digest == first.digest
    (installed / "packages/torch/nn.py").write_text("longer " * 200)
    with pytest.raises(ConfigError, match="tells of other python texts"):
        gathered("python", installed / "third", installed / "out")
    assert recorded("python", installed / "out").digest == first.digest
    assert gathered("python", installed / "third", installed / "new").digest != first.digest


def test_few_bytes_are_a_part_of_the_files_and_no_large_one(installed):
    for number in range(60):
        (installed / f"packages/small{number}.py").write_text(f"# {number}\n" * 4)
    found = gathered("python", installed / "links", installed / "out", most_bytes=1_000)
    assert 900 <= found.size_bytes <= 1_000
    assert max((Path(found.path) / name).stat().st_size for name in _names(found)) <= 50


def test_tables_of_what_was_never_computed_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing was computed there"):
        recorded("python", tmp_path)


@pytest.mark.parametrize("size", [size for size in SIZES if size != QUICK])
def test_a_run_reads_so_many_bytes_for_each_parameter_of_a_host_of_that_size(size):
    one, case = SIZES[size], case_of("source", size, TEXTS, OPTIONS)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in one.host().parameters())
    unit, number = 1e6, float(size.removesuffix("M"))
    assert parameters == pytest.approx(number * unit, rel=0.1)
    read = EPOCHS * case.pace.steps_per_epoch * OPTIONS.batch * one.context
    assert read / parameters == pytest.approx(one.bytes_per_parameter, rel=0.02)
    assert dict(case.host_settings)["width"] == one.width


def test_rates_around_the_first_guess_are_searched_and_a_single_one_is_not():
    case = case_of("source", "0.25M", TEXTS, OPTIONS)
    assert case.rates == (2e-3, 3e-3, 4.5e-3)
    alone = case_of("source", "0.25M", TEXTS, argparse.Namespace(**vars(OPTIONS) | {"rates": [2.5e-3]}))
    plan = Plan(Path("none"), [case, alone])
    assert [len(plan.recipes(one, "grown")) for one in plan.cases] == [3, 1]
    assert plan.choice(alone, "grown") == Recipe(2.5e-3, "constant_then_linear")
    assert {recipe.schedule for recipe in plan.recipes(case, "grown")} == {"constant_then_linear"}


def test_cells_of_another_setting_are_not_taken_for_those_of_this_one():
    case = case_of("source", "0.25M", TEXTS, OPTIONS)
    others = (
        case_of("source", "1M", TEXTS, OPTIONS),
        replace(case, digest="another"),
        replace(case, precision="bf16"),
        replace(case, is_compiled=True),
        replace(case, growth=(("min_targets", 0),)),
        replace(case, before=case),
        replace(case, host_settings=(("width", 32),)),
    )
    assert len({one.key for one in (case, *others)}) == 1 + len(others)
    assert replace(case, device="cuda").key == case.key
    assert replace(case, data="text:elsewhere").key == case.key


def test_cases_that_were_there_before_keep_their_cells():
    keys = [case.key for case in cases()]
    assert keys == ["digits-ca646230", "mnist1d-e0588757", "mnist1d-cnn-e44141b6"]


def test_going_on_begins_with_the_hosts_that_source_has_trained():
    texts = {kind: TEXTS._replace(digest=kind) for kind in ("python", "c", "english")}
    first, second = going_on.cases(["0.25M"], texts, OPTIONS)
    (before,) = source.cases(["0.25M"], texts, OPTIONS)
    paths = {trained_host_path(Path(), case, 0) for case in (first, second, before)}
    assert len(paths) == 1
    assert first.key != second.key
    assert (first.digest, first.before.digest) == ("c", "python")
    assert set(first.rows) <= set(ROWS)


def _row(losses: list[float | None], share: float | None = None, kept: int = 0) -> dict:
    mean = sum(loss or 0 for loss in losses) / len(losses)
    arms = None if share is None else (share, share, share)
    cells = {str(seed): {"test_loss": loss} for seed, loss in enumerate(losses)}
    row = {"by_seed": cells, "loss": (mean, mean, mean), "share_of_arms_and_judging": arms}
    return row | {"kept": kept, "seeds": len(losses)}


@pytest.mark.parametrize(
    ("goal", "grown", "other", "is_met"),
    [
        (Better("a", "grown", "host_on", 0.04), [1.0, 1.0], [1.05, 1.04001], True),
        (Better("a", "grown", "host_on", 0.04), [1.0, 1.0], [1.5, 1.03], False),
        (Better("a", "grown", "host_on", 0.0), [1.0], [1.0], False),
        (Better("a", "grown", "host_on", 0.0), [1.0], [None], True),
        (Better("a", "grown", "host_on", 0.0), [None], [1.0], False),
        (NoWorse("a", "grown", "host_on", 0.01), [1.0, 1.02], [1.01, 1.0], True),
        (NoWorse("a", "grown", "host_on", 0.01), [1.0, 1.04], [1.01, 1.0], False),
        (Refused("a", "grown", "host_on"), [1.002], [1.0], True),
        (Refused("a", "grown", "host_on"), [1.004], [1.0], False),
    ],
)
def test_a_goal_is_met_by_losses_seed_by_seed(goal, grown, other, is_met):
    results = {"tasks": {"a": {"grown": _row(grown, 0.02), "host_on": _row(other)}}, "others": {}}
    assert told([goal], results).endswith("| yes |" if is_met else "| no |")
    stored = json.loads(json.dumps(results))
    assert told([goal], stored) == told([goal], results)


@pytest.mark.parametrize(("share", "kept"), [(0.031, 0), (0.0, 1)])
def test_a_refusal_that_costs_more_or_does_not_refuse_is_none(share, kept):
    rows = {"grown": _row([1.0], share, kept), "host_on": _row([1.0])}
    assert told([Refused("a", "grown", "host_on")], {"tasks": {"a": rows}, "others": {}}).endswith("| no |")


def test_a_goal_without_its_rows_is_told_as_not_computed():
    table = told([Better("a", "sunk_grown", "sunk_lora", 0.0)], {"tasks": {}, "others": {}})
    assert table.splitlines()[-1] == "| a | sunk_grown | sunk_lora | | not computed | no |"


def test_means_at_a_glance_are_over_the_seeds_that_all_rows_have():
    def row(*losses: float) -> dict[str, Any]:
        cells = {str(seed): {"test_loss": loss, "test_metric": 0.5} for seed, loss in enumerate(losses)}
        about = {"seeds": len(losses), "kept": 0, "parameters": [10.0], "share_of_arms_and_judging": [0.0]}
        return about | {"by_seed": cells}

    results = {"settings": {"a": {}}, "tasks": {"a": {"grown": row(1.0, 9.0, 9.0), "host_on": row(2.0)}}, "others": {}}
    assert in_nats(results, "grown", {"host_on": "host trained on"}).splitlines()[-1] == (
        "| a | 10, 10 | 0 of 3 seeds | 2.000, 50.0 % | 1.000, 50.0 % | 0 % |"
    )
    assert in_nats(results, "sunk_grown", {}) == ""


def _finished(directory: Path, size: str, seeds: Sequence[int]) -> Plan:
    """A plan of one size, whose cells are there as if they had been computed."""
    rates = argparse.Namespace(**vars(OPTIONS) | {"rates": [3e-3]})
    plan = Plan(directory, [case_of("source", size, TEXTS, rates)], ("grown", "host_on"), seeds=seeds)
    for jobs in plan.phases():
        for job in jobs:
            numbers = {"parameters": 10, "train_flops": 100, "seconds": 1.0, "lr": 3e-3, "schedule": "cosine"}
            judged = {
                "val_loss": 1.0,
                "test_loss": 1.0 - 0.1 * (job.row == "grown"),
                "test_metric": 0.5,
                "val_metric": 0.5,
            }
            grew = {"probe_flops": 5, "kept": 1} if job.row == "grown" else {}
            curve = {"curve": {"flops": [100], "val_metrics": [0.5]}, "followed": fingerprint(job.followed)}
            write_cell(job.path, numbers | judged | grew | curve)
    return plan


def test_sizes_are_put_together_and_fewer_seeds_replace_nothing(tmp_path, capsys):
    published = tmp_path / "source.json"
    for size in ("0.25M", "5M"):
        write(source.BENCHMARK, _finished(tmp_path, size, range(2)), {"python": TEXTS})
    results = json.loads(published.read_text())
    assert list(results["tasks"]) == ["source-0.25M", "source-5M"]
    assert len(results["machines"]) == 1
    found = source.BENCHMARK.told(results).splitlines()
    assert (
        "| source-0.25M | 10, 10 | 2 of 2 seeds | 1.000, 50.0 % | not computed | not computed | 0.900, 50.0 % | 5 % |"
        in found
    )
    assert any(
        line.startswith("| source-0.25M | grown | host_on | better by 0.04") and line.endswith("yes |")
        for line in found
    )
    assert any(
        line.startswith("| source-5M | grown | host_on | refused for 3%") and line.endswith("no |") for line in found
    )
    before = published.read_text()
    write(source.BENCHMARK, _finished(tmp_path, "5M", range(1)), {"python": TEXTS})
    assert published.read_text() == before
    assert "stays as it is" in capsys.readouterr().out


def test_no_cell_is_begun_once_the_time_is_over(tmp_path):
    plan = Plan(tmp_path, [replace(cases()[0], rates=(1e-2,))], ("grown",), seeds=(0,))
    assert compute(plan, workers=1, seconds=-1) == []
    assert not list(tmp_path.iterdir())


def test_options_that_cannot_be_followed_are_refused(tmp_path, capsys):
    for arguments, message in (
        (["--quick"], "--output of its own"),
        (["--device", "cuda:99", "--output", str(tmp_path)], "no device 'cuda:99'"),
        (["--device", "tpu", "--output", str(tmp_path)], "no device 'tpu'"),
        (["--bytes-per-parameter", "0", "--output", str(tmp_path)], "above 0"),
        (["--rates", "-1", "--output", str(tmp_path)], "above 0"),
        (["--tables", "--output", str(tmp_path)], "nothing was computed there"),
        (["--batch", "0", "--output", str(tmp_path)], "at least 1"),
    ):
        with pytest.raises(SystemExit) as refused:
            main(source.BENCHMARK, arguments)
        assert refused.value.code == 2, arguments
        assert message in capsys.readouterr().err, arguments
    assert not list(tmp_path.iterdir())


LIGHT = """
import argparse, sys
from pathlib import Path
from typing import Any
for name in sys.argv[2].split():
    sys.modules[name] = None  # as if it were not installed
from benchmarks.growth import going_on
from benchmarks.growth.cells import Job
from benchmarks.growth.computing import compute_cell
from benchmarks.growth.environment import gathered
from benchmarks.growth.rows import shipped
out = Path(sys.argv[1])
texts = dict.fromkeys(("python", "c", "english"), gathered("python", out / "links", out, 60_000))
about = {"bytes_per_parameter": 0.1, "rates": None, "batch": 64, "precision": "bf16", "compile": False}
options = argparse.Namespace(**about, device="cpu")
case = going_on.cases(["quick"], texts, options)[0]
job = Job(out, case, "sunk_grown", shipped(case), 0)
compute_cell(job)
compute_cell(Job(out, case, "sunk_host_on", shipped(case), 0, job.path))
print(job.path)
"""
NOT_NEEDED = (
    "yaml structlog rich sklearn pandas pyarrow jinja2 zstandard obstore redis nats openfeature peft transformers"
)


def test_it_needs_no_more_than_torch_numpy_scipy_and_safetensors(tmp_path):
    """A machine with a GPU may have no more. The host is trained on one text, and grows on another."""
    command = [sys.executable, "-c", LIGHT, str(tmp_path), NOT_NEEDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cell = read_cell(Path(done.stdout.strip()))
    assert cell["steps"] == EPOCHS
    assert len(list(tmp_path.glob("cells/source-quick-*/trained_host/000.safetensors"))) == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "case", "row"), [("source", "source-quick", "placebo"), ("going_on", "c-quick", "sunk_lora")]
)
def test_the_quick_benchmark_goes_from_texts_to_tables(tmp_path, name, case, row):
    command = [
        sys.executable,
        "-m",
        f"benchmarks.growth.{name}",
        "--quick",
        "--output",
        str(tmp_path),
        "--workers",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FAILED" not in done.stdout
    results = json.loads((tmp_path / f"{name}.json").read_text())
    tables = [results["tasks"].get(case, {}), *results["others"][case].values()]
    assert any(row in table for table in tables)
    assert results["machines"][0]["torch"]
    assert results["texts"]["python"]["size_bytes"] > 200_000
    assert str(tmp_path) not in json.dumps(results)
    again = subprocess.run([*command, "--tables"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "of this phase" not in again.stdout
    assert json.loads((tmp_path / f"{name}.json").read_text()) == results


def test_a_trained_host_is_trained_once_before_all_rows_that_begin_with_it(tmp_path, monkeypatch):
    case = replace(cases()[0], rates=(1e-2,), schedules=("cosine",))
    case = replace(case, pace=case.pace._replace(epochs=1))
    done = []

    def in_this_process(work, jobs, workers, until):
        done.extend((work.__name__, job.row) for job in jobs)
        for job in jobs:
            work(job)
        return []

    monkeypatch.setattr(computing, "_each", in_this_process)
    compute(Plan(tmp_path, [case], ("sunk_grown", "sunk_host_on", "grown"), seeds=(0,)), workers=1)
    assert done[0] == ("trained_host", "sunk_grown")
    assert [work for work, _ in done].count("trained_host") == 1
    assert {row for work, row in done if work == "compute_cell"} == {"sunk_grown", "sunk_host_on", "grown"}
    assert trained_host_path(tmp_path, case, 0).exists()
