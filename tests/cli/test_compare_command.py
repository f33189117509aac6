"""``esper compare``: several runs side by side."""

import json
import shutil

import pytest

from esper.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory, grows, finished):
    """Two runs that differ in their seed: their directories."""
    parent = tmp_path_factory.mktemp("compared")
    line = ["run", "--config", grows, "--no-controls", "--seed", "1", "--output", str(parent / "seed1")]
    assert main(line) == 0
    return [shutil.copytree(finished, parent / "seed0"), parent / "seed1"]


def test_the_table_the_differences_and_the_page(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    for directory in runs:
        row = json.loads((directory / "result.json").read_text())["rows"]["grown"]
        (line,) = (line for line in out.splitlines() if line.startswith(directory.name) and "finished" in line)
        assert f"{row['parameters']:,}" in line
        assert f"{row['test_metric']:.1%}" in line
    assert any(line.split() == ["seed", "0", "1"] for line in out.splitlines())
    assert "Written to compare.html\n" in out
    page = (tmp_path / "compare.html").read_text()
    assert all(directory.name in page for directory in runs)


def test_the_page_is_written_where_it_is_asked_for(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, runs), "--output", "page.html"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    assert "Written to page.html\n" in capsys.readouterr().out


def test_a_directory_without_a_run_is_refused_and_nothing_is_written(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", str(runs[0]), str(tmp_path)]) == 2
    assert "holds nothing of a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
