"""``esper ab``, as typed."""

import json
import os
import signal
import subprocess

import pytest

from esper.cli.main import main
from esper.flags.lock import held

WORK = """\
def work(seed):
    return {"loss": %s + 0.01 * (seed %% 3)}

def other(seed):
    return {"loss": 0.5}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measured_work.py").write_text(WORK % 1.0)
    (tmp_path / "some.yaml").write_text("epochs: 1\ngrowth: {max_rounds: 0}\n")
    (tmp_path / "copy.yaml").write_text("growth: {max_rounds: 0}\nepochs: 1\nseed: 3\n")
    (tmp_path / "spelled_out.yaml").write_text("epochs: 1\nhost: mlp\ngrowth: {max_rounds: 0}\n")
    return tmp_path


def git(directory, *words):
    name = ["-c", "user.name=one", "-c", "user.email=one@example.org"]
    subprocess.run(["git", "-C", directory, *name, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path_factory):
    """Of two commits: the second has less loss; a third is the first again."""
    made = tmp_path_factory.mktemp("repository")
    git(made, "init", "--quiet", "--initial-branch", "main")
    for loss in (1.0, 0.5, 1.0):
        (made / "work_in_commits.py").write_text(WORK % loss)
        git(made, "add", "-A")
        git(made, "commit", "--quiet", "--message", f"loss {loss}")
    return made


def test_two_commits_are_compared_and_their_worktrees_taken_away(here, repository, capsys):
    line = ["ab", "main~2", "main~1", "--measure", "work_in_commits:work", "--repository", str(repository)]
    assert main([*line, "--output", "out"]) == 0
    assert "B is better in loss." in capsys.readouterr().out
    assert json.loads((here / "out/ab.json").read_text())["findings"]["loss"]["verdict"] == "B"
    listed = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1


def test_commits_that_hold_the_same_are_the_same(here, repository, capsys):
    line = ["ab", "main~2", "main", "--measure", "work_in_commits:work", "--repository", str(repository)]
    assert main(line) == 2
    assert "A and B are the same" in capsys.readouterr().err
    assert main([*line, "--null", "--max-pairs", "2"]) == 0


@pytest.mark.long
def test_two_configurations_are_run_and_compared(here, capsys):
    """Real runs, with their run directories; the second is worse for sure."""
    (here / "worse.yaml").write_text("epochs: 1\nlr: 0.000001\ngrowth: {max_rounds: 0}\n")
    assert main(["ab", "some.yaml", "worse.yaml", "--max-pairs", "1"]) == 0
    found = json.loads((here / "ab/some-worse/ab.json").read_text())
    a, b = (found["pairs"][0][side]["metrics"] for side in "ab")
    assert set(a) == {"loss", "accuracy", "parameters", "train_flops", "seconds"}
    assert a["loss"] < b["loss"]
    assert 0 < found["pairs"][0]["similarity"]["equal_predictions"] < 1
    assert (here / "ab/some-worse/A/seed-0/result.json").is_file()
    assert [one["name"] for one in found["metrics"] if one["is_primary"]] == ["loss", "accuracy"]
    assert "% of their predictions are the same" in capsys.readouterr().out


def test_where_no_pair_is_complete_that_is_told(here, capsys):
    """A first pair that is complete but for a ratio that cannot be: its metrics are known, and nothing of them."""
    (here / "measured_bytes.py").write_text(
        "def none(seed):\n    return {'bytes': 0}\ndef one(seed):\n    return {'bytes': 1}"
    )
    assert main(["ab", "measured_bytes:none", "measured_bytes:one", "--max-pairs", "2", "--output", "out"]) == 1
    assert "Units failed: A in 2 and B in 0 of 2 pairs." in capsys.readouterr().out


def test_a_comparison_goes_on_where_it_was_and_is_shown_again(here, capsys):
    line = ["ab", "measured_work:work", "measured_work:other", "--output", "out"]
    assert main([*line, "--max-pairs", "2"]) == 0
    assert main([*line, "--max-pairs", "3"]) == 0
    assert "pair 3, seed 2" in capsys.readouterr().out
    assert main([*line, "--max-pairs", "3"]) == 0
    again = capsys.readouterr().out
    assert "pair 3, seed 2" not in again
    assert "It ended after 3 pairs" in again


@pytest.mark.long
def test_one_that_was_killed_in_its_first_pair_is_begun_anew(here, monkeypatch):
    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    monkeypatch.setattr("esper.evaluation.ab.runner.record.write", killed)
    line = ["ab", "some.yaml", "other.yaml", "--max-pairs", "1"]
    (here / "other.yaml").write_text("epochs: 2\ngrowth: {max_rounds: 0}\n")
    with pytest.raises(KilledError):
        main(line)
    assert sorted(path.name for path in (here / "ab/some-other").iterdir()) == ["A", "B"]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(line) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["some.yaml", "some.yaml"], "A and B are the same: some.yaml and some.yaml. Name two that differ"),
        (["some.yaml", "copy.yaml"], "A and B are the same"),
        (["some.yaml", "spelled_out.yaml"], "A and B are the same"),
        (["measured_work:work", "measured_work:work"], "A and B are the same"),
        (["measured_work:work", "measured_work:other", "--null"], "Leave --null out"),
        (["some.yaml", "measured_work:work"], "must be of one kind"),
        (["some.yaml", "none.yaml"], "none.yaml cannot be read"),
        (["main", "main~1"], "Say what to measure in each: --measure"),
        (["main", "main~1", "--measure", "some.yaml"], "is no git repository"),
        (["measured_work:work", "measured_work:other", "--measure", "some.yaml"], "Leave it out"),
        (["measured_work:work", "measured_work:others"], "Valid: other, work"),
        (["measured_work:work", "measured_work:other", "--margin", "loss"], "--margin takes NAME=X"),
        (["measured_work:work", "measured_work:other", "--margin", "loss=x"], "a margin is a number above 0"),
        (["measured_work:work", "measured_work:other", "--margin", "lost=1"], "Did you mean 'loss'?"),
        (["measured_work:work", "measured_work:other", "--alpha", "2"], "alpha must be above 0 and below 1"),
        (["measured_work:work", "measured_work:other", "--max-pairs", "0"], "max_pairs must be at least 1"),
        (["measured_work:work", "measured_work:other", "--timeout", "0"], "--timeout must be above 0"),
        (["measured_work:work", "measured_work:other", "--output", "some.yaml"], "is a file"),
        (["measured_work:work", "measured_work:other", "--output", "."], "holds something else"),
    ],
)
def test_wrong_input_ends_with_2_and_a_sentence_and_changes_nothing(here, capsys, line, message):
    before = sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts)
    assert main(["ab", *line]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("esper: ")
    assert error.count("\n") == 1
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before


def test_a_commit_that_is_not_there_is_refused(here, repository, capsys):
    line = ["ab", "main", "mian", "--measure", "work_in_commits:work", "--repository", str(repository)]
    assert main(line) == 2
    assert "There is no commit 'mian'" in capsys.readouterr().err


def test_two_at_once_in_one_directory_are_refused_and_the_first_goes_on(here, capsys):
    (here / "out/A/seed-0").mkdir(parents=True)
    with held(here / "out/.ab.lock", "it"):
        assert main(["ab", "measured_work:work", "measured_work:other", "--output", "out"]) == 2
    assert "Another writer holds the comparison in out: process" in capsys.readouterr().err
    assert (here / "out/A/seed-0").is_dir()


def test_one_that_is_told_to_end_leaves_no_worktree(here, repository, monkeypatch):
    def listed():
        return subprocess.check_output(["git", "-C", repository, "worktree", "list"]).splitlines()

    def told_to_end(*_):
        assert len(listed()) == 3
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("esper.cli.comparing.ABTestRunner", told_to_end)
    line = ["ab", "main~2", "main~1", "--measure", "work_in_commits:work", "--repository", str(repository)]
    assert main(line) == 130
    assert len(listed()) == 1
