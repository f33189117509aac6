"""``esper baseline``: what it refuses, and a slowdown that it finds."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.rollout_kit.baseline import clone
from esper.cli.main import main
from tests.evaluation.test_baseline import BASELINE

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Two commits: one without Esper's sources, and one with a package of that name."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "nothing yet")
    (root / "src" / "esper").mkdir(parents=True)
    (root / "src" / "esper" / "__init__.py").write_text("")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "a package")
    monkeypatch.chdir(root)
    return root


def refused(capsys, *words: str) -> str:
    """The one sentence or two that a line is refused with."""
    assert main(["baseline", *words]) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return told.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recrd"], "choose from"),
        (["record", "--base", "HEAD"], "no use for --base"),
        (["record", "--memory-threshold", "3"], "no use for --memory-threshold"),
        (["record", "one.json"], "--output names its file"),
        (["record", "--seeds", "100,many"], "whole numbers from 1 on"),
        (["record", "--seeds", "0"], "whole numbers from 1 on"),
        (["record", "--seeds", ""], "whole numbers from 1 on"),
        (["record", "--quick", "--batch-sizes", "8"], "leave out --batch-sizes"),
        (["record", "--quick", "--device", "gpu"], "no device 'gpu'"),
        (["record", "--quick", "--threads", "0"], "at least 1 thread"),
        (["record", "--quick", "--run", "nowhere"], "nowhere"),
        (["record", "--output", "nowhere/one.json"], "no folder nowhere"),
        (["compare"], "needs either --base"),
        (["compare", "one.json"], "needs either --base"),
        (["compare", "one.json", "two.json", "--base", "HEAD"], "needs either --base"),
        (["compare", "--base", "HEAD~1", "--run", "runs/1"], "no use for --run"),
        (["compare", "--base", "nonsense"], "no commit 'nonsense'"),
        (["compare", "--base", "HEAD"], "--null"),
        (["compare", "--base", "HEAD~1"], "holds no src/esper"),
        (["compare", "--base", "HEAD", "--threshold", "-1"], "threshold must be 0 % or more, and finite, not -1 %"),
        (["compare", "--base", "HEAD", "--blocks", "0"], "At least 1 block"),
        (["compare", "--base", "missing.json"], "cannot be read as a baseline"),
        (["compare", "one.json", "two.json"], "cannot be read as a baseline"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(repository, capsys, words, message):
    assert message in refused(capsys, *words)
    assert not list(repository.glob("*.json"))


def test_a_folder_outside_of_any_repository_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no git repository" in refused(capsys, "compare", "--base", "HEAD")


def test_a_repository_of_something_else_is_refused(repository, capsys):
    git(repository, "rm", "--quiet", "-r", "src")
    git(repository, "commit", "--quiet", "-m", "gone")
    assert "no clone of Esper" in refused(capsys, "compare", "--base", "HEAD~1")


def test_null_is_for_two_sides_that_are_the_same(repository, capsys):
    (repository / "src" / "esper" / "new.py").touch()
    assert "src differs" in refused(capsys, "compare", "--base", "HEAD", "--null")


def test_a_commit_that_changes_no_source_is_the_same(repository, capsys):
    (repository / "README").write_text("read me")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "words")
    assert "is the same as HEAD~1" in refused(capsys, "compare", "--base", "HEAD~1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"is_clean": False}, "changes that no commit holds"), ({"commit": None}, "outside of a git repository")],
)
def test_a_baseline_that_no_commit_holds_is_no_base(repository, capsys, fields, message):
    path = repository / "one.json"
    BASELINE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    assert message in refused(capsys, "compare", "--base", "one.json")


def test_baselines_of_two_machines_are_refused_with_what_to_do(repository, capsys):
    BASELINE.write(repository / "one.json")
    there = json.loads((repository / "one.json").read_text()) | {"machine_id": "other"}
    (repository / "two.json").write_text(json.dumps(there))
    assert "compare --base" in refused(capsys, "compare", "one.json", "two.json")
    assert main(["baseline", "compare", "one.json", "one.json"]) == 0
    assert "shows no regression and rules none out" in capsys.readouterr().out


@pytest.mark.long
def test_a_step_that_is_slower_by_a_tenth_fails_and_what_is_the_same_does_not(monkeypatch, tmp_path, capsys):
    with clone() as root:
        monkeypatch.chdir(root)
        words = ["baseline", "compare", "--quick", "--blocks", "300"]
        assert main([*words, "--base", "HEAD~1", "--output", str(tmp_path / "found.json")]) == 1
        assert main([*words, "--base", "HEAD", "--null"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["verdict"] == "regression"
    assert {one["what"]: one["verdict"] for one in found["found"]}["step"] == "regression"
    assert "regression" in capsys.readouterr().out


@pytest.mark.long
def test_a_baseline_that_was_recorded_stands_for_its_commit(tmp_path, capsys):
    path = tmp_path / "one.json"
    assert main(["baseline", "record", "--quick", "--output", str(path)]) == 0
    assert json.loads(path.read_text())["adaptation"]["runs"] == 1
    assert main(["baseline", "compare", str(path), str(path)]) == 0
    assert "+0.0%" in capsys.readouterr().out
