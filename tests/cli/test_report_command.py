"""``esper report``: one run as a page."""

import json
import shutil
import subprocess
import sys

import pytest

from esper.cli.main import main


def test_the_page_is_written_into_the_run_directory(finished, tmp_path, capsys):
    directory = shutil.copytree(finished, tmp_path / "run")
    page = directory / "report.html"
    page.unlink()
    assert main(["report", str(directory)]) == 0
    out = capsys.readouterr().out
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert "The network grew" in out
    assert f"Written to {page}\n" in out


def test_the_page_is_written_where_it_is_asked_for(finished, tmp_path, capsys):
    before = (finished / "report.html").stat().st_mtime_ns
    assert main(["report", str(finished), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists()
    assert f"Written to {tmp_path / 'page.html'}\n" in capsys.readouterr().out
    assert (finished / "report.html").stat().st_mtime_ns == before


def test_a_run_that_is_not_finished_is_reported_too(finished, tmp_path, capsys):
    for name in ("config.yaml", "audit.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()
    assert "The network is trained" in capsys.readouterr().out


def test_a_directory_without_a_run_is_refused_and_left_alone(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds nothing of a run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_told(finished, tmp_path, capsys):
    assert main(["report", str(finished), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "compare"])
def test_neither_torch_nor_the_console_is_loaded(command, finished, tmp_path):
    code = "import sys; from esper.cli.main import main; assert main(sys.argv[1:]) == 0; print(*sys.modules, sep='\\n')"
    directories = [str(finished)] * (2 if command == "compare" else 1)
    line = [sys.executable, "-c", code, command, *directories, "--output", str(tmp_path / "page.html")]
    loaded = set(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines())
    assert "esper.observability.report" in loaded
    assert not {"torch", "rich", "structlog"} & loaded


def test_the_headline_tells_what_the_result_says(finished, tmp_path, capsys):
    result = json.loads((finished / "result.json").read_text())
    kept = sum(one["outcome"] == "FOSSILIZED" for one in result["lifecycles"])
    assert main(["report", str(finished), "--output", str(tmp_path / "page.html")]) == 0
    assert f"The network grew {kept} part" in capsys.readouterr().out
