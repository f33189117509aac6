"""What a reader of the live page is sent: all at first, then what is new, and what is missing is said."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from esper.observability.live.directories import DirectoryRuns
from esper.observability.live.feed import Feed, Runs
from esper.observability.live.view import ORDER
from esper.observability.record import read
from esper.observability.report import SECTIONS, report
from tests.observability.recorded import write_synthetic


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("whole"), seeds=100, boundaries=12)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Nothing waits for its time."""
    monkeypatch.setattr("esper.observability.live.feed._LOOK_S", 0.0)
    monkeypatch.setattr("esper.observability.live.directories._LOOK_S", 0.0)
    monkeypatch.setattr("esper.observability.live.directories._SEARCH_S", 0.0)


def feed(*places, run=None) -> Feed:
    return Feed(Runs(DirectoryRuns(places)), run)


def test_every_section_is_written_as_in_the_report(whole):
    """But for where numbers come from, which only the report is checked by."""
    name, content = feed(whole).next()
    assert (name, content["run"], tuple(content["order"])) == ("all", str(whole), ORDER)
    assert set(SECTIONS) < set(ORDER)
    page = "".join(re.sub(r' data-from="[^"]*"', "", report(read(whole))).split())
    for section in SECTIONS:
        assert f'id="{section}"' in content["parts"][section]
        assert "".join(content["parts"][section].split()) in page


def test_only_what_has_changed_is_sent(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    (directory / "result.json").unlink()
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text("".join(lines[:-2]))
    reader = feed(directory)
    reader.next()
    assert reader.next() is None
    with (directory / "metrics.jsonl").open("a") as file:
        file.write("".join(lines[-2:]))
    name, content = reader.next()
    assert name == "change"
    assert set(content["parts"]) <= {"story", "now", "curves", "lattice", "runs", "anatomy"}
    told = {path: value for path, how, value in content["data"] if how == "add"}
    assert told["curves", "run", "steps"] == [1200]
    assert len(told["lattice", "packs"]) == 1
    assert len(json.dumps(content["data"])) < len(json.dumps(reader._view.data)) / 4


def test_a_run_that_begins_later_appears(whole, tmp_path):
    reader = feed(tmp_path)
    name, content = reader.next()
    assert (content["run"], content["data"]) == (None, {})
    assert "holds nothing of a run yet" in content["parts"]["runs"]
    shutil.copytree(whole, tmp_path / "later")
    name, content = reader.next()
    assert (name, content["run"]) == ("all", str(tmp_path / "later"))


def test_several_runs_stand_side_by_side_and_one_is_opened(whole, tmp_path):
    for run in ("a", "b"):
        shutil.copytree(whole, tmp_path / run)
    _, content = feed(tmp_path, run=str(tmp_path / "b")).next()
    assert content["run"] == str(tmp_path / "b")
    assert content["parts"]["runs"].count("<progress") == 2
    assert content["parts"]["runs"].count('aria-current="page"') == 1


def test_an_unknown_run_is_said(tmp_path, whole):
    _, content = feed(whole, run="<script>").next()
    assert content["run"] is None
    assert "There is no run &lt;script&gt; here" in content["parts"]["runs"]


def test_a_directory_that_is_deleted_is_said(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    reader = feed(directory)
    reader.next()
    shutil.rmtree(directory)
    _, content = reader.next()
    assert "is gone: this is what was read before." in content["parts"]["story"]


def test_lines_of_a_newer_version_are_left_out_and_said(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    with (directory / "audit.jsonl").open("a") as file:
        file.write('{"event": "from_the_future", "time": 9e9, "step": 1, "what": {}}\n{"event": "note", "time": 9e9}\n')
    _, content = feed(directory).next()
    assert "is damaged and was left out" in content["parts"]["story"]


def test_a_run_that_nobody_reads_any_more_is_not_kept(whole):
    runs = Runs(DirectoryRuns([whole]))
    reader = Feed(runs, None)
    reader.next()
    with runs.read(str(whole)):
        assert runs._viewers
    assert not runs._viewers


def test_without_esper_watch_nothing_of_it_is_imported():
    code = (
        "import sys, esper.cli.main, esper.observability.report, esper.cli.commands.watch;"
        "print([name for name in ('starlette', 'uvicorn', 'esper.observability.live') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_round_under_way_is_shown_with_the_arms_that_are_over(whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    lines = (directory / "audit.jsonl").read_text().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if '"event": "arm_ended"' in line)
    (directory / "audit.jsonl").write_text("".join(lines[: last + 1]))
    _, content = feed(directory).next()
    now = content["parts"]["now"]
    assert "Round 2 with 1 candidate, since step 800." in now
    assert ">beat the twin<" in now
    assert "round 2 with 1 candidate" not in content["parts"]["runs"]  # one run is no list
