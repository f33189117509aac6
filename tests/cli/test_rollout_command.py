"""``esper rollout``, as it is typed."""

import json
import time

import pytest

from esper.cli.main import main
from esper.flags import set_flag
from esper.flags.edit import read
from tests.evaluation.rollout.world import FLAG, write_run


@pytest.fixture
def where(tmp_path):
    set_flag(tmp_path / "flags.json", FLAG, "0%")
    (tmp_path / "runs").mkdir()
    return tmp_path


def start(where, *more: str, flag: str = FLAG, plan: str = "10,50,100") -> int:
    files = ["--flags", str(where / "flags.json"), "--runs", str(where / "runs"), "--state", str(where / "state")]
    return main(["rollout", "start", "--flag", flag, "--plan", plan, *files, *more])


def do(where, action: str, *more: str) -> int:
    return main(["rollout", action, "--state", str(where / "state"), *more])


def share(where) -> float:
    rule = read(where / "flags.json").rules[FLAG]
    return 0.0 if rule.is_switched_off else rule.share / 1000


def runs(where, first: int, *, slower: float = 1.0, count: int = 2) -> None:
    for number in range(first, first + count):
        for is_on in (True, False):
            step_s = 0.001 * (slower if is_on else 1.0) * (1 + number % 3 / 100)
            name = f"{number}-{'on' if is_on else 'off'}"
            write_run(where / "runs" / name, is_on=is_on, begin=time.time(), step_s=step_s)


def test_from_start_to_completion(where, capsys):
    assert start(where, "--min-runs", "2") == 0
    assert share(where) == 10
    for first, wanted in ((0, 50), (10, 100), (20, 100)):
        runs(where, first)
        assert do(where, "advance", "--flag", FLAG) == 0
        assert share(where) == wanted
    capsys.readouterr()
    assert do(where, "status") == 0
    told = capsys.readouterr().out
    assert f"{FLAG}: completed, at 100 % of the plan 10,50,100" in told
    assert "step time +0.0 % with the flag on (" in told


def test_slower_runs_are_taken_back_and_say_so_by_the_exit_code(where, capsys):
    start(where)
    runs(where, 0, slower=2.0, count=40)
    assert do(where, "advance") == 1
    assert "worse: step time +100.0 % with the flag on" in capsys.readouterr().out
    assert share(where) == 0
    assert do(where, "status") == 1


def test_dry_runs_change_nothing(where, capsys):
    before = (where / "flags.json").read_bytes()
    assert start(where, "--dry-run") == 0
    assert capsys.readouterr().out == f"Would set {FLAG} from 0 % to 10 %. Nothing was changed.\n"
    assert (where / "flags.json").read_bytes() == before
    assert not (where / "state").exists()
    start(where, "--min-runs", "2")
    runs(where, 0)
    audit = (where / "state" / "audit.jsonl").read_bytes()
    assert do(where, "advance", "--dry-run") == 0
    assert "Would go on from 10 %: nothing speaks against 50 % (runs: 2 on, 2 off)" in capsys.readouterr().out
    assert (where / "state" / "audit.jsonl").read_bytes() == audit


def test_a_watch_ends_with_the_rollout(where, capsys):
    start(where, "--patience", "0.2", "--stale", "0.1")
    assert do(where, "advance", "--watch", "0.05") == 1
    assert "data are missing" in capsys.readouterr().out


def test_a_source_that_is_not_there_is_told(where, capsys):
    (where / "runs").rmdir()
    start(where)
    assert do(where, "advance") == 0
    assert "runs does not answer: [Errno 2] No such file" in capsys.readouterr().out


@pytest.mark.parametrize("every", ["0", "-1", "soon"])
def test_a_watch_without_a_pause_is_refused(where, capsys, every):
    start(where)
    before = (where / "state" / "audit.jsonl").read_bytes()
    assert do(where, "advance", f"--watch={every}") == 2
    assert "--watch must be a number" in capsys.readouterr().err
    assert (where / "state" / "audit.jsonl").read_bytes() == before


def test_a_brake_that_a_damaged_store_holds_up_says_what_works(where, capsys):
    start(where)
    (where / "flags.json").write_text("{")
    assert do(where, "rollback") == 2
    told = capsys.readouterr().err
    assert "set ESPER_FLAG_GRAFTING_STRATEGIES=0 in their environment" in told
    assert "mend the file and try again" in told
    assert (where / "flags.json").read_text() == "{"
    set_flag(where / "mended.json", FLAG, "10%")
    (where / "mended.json").replace(where / "flags.json")
    assert do(where, "rollback") == 0
    assert share(where) == 0


def test_nobody_else_may_read_the_audit(where):
    start(where)
    assert (where / "state" / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_the_brake_writes_down_why(where):
    start(where)
    assert do(where, "rollback", "--why", "smoke in room 3") == 0
    assert share(where) == 0
    last = [json.loads(line) for line in (where / "state" / "audit.jsonl").read_text().splitlines()][-2]
    assert (last["event"], last["why"]) == ("taken_back", "smoke in room 3")


WRONG_STARTS = {
    "falls": ({"plan": "10,50,25"}, "falls from 50 to 25"),
    "repeats": ({"plan": "10,10"}, "repeats 10"),
    "below 0": ({"plan": "0,10"}, "holds 0. Each share must be above 0"),
    "above 100": ({"plan": "10,101"}, "holds 101"),
    "no number": ({"plan": "10,lots"}, "'lots' is no number"),
    "not finite": ({"plan": "10,nan"}, "holds nan"),
    "too fine": ({"plan": "0.0001,10"}, "steps of 0.001 percent"),
    "all at once": ({"plan": "100"}, "nothing to compare|leaves no run without the flag"),
    "unknown flag": ({"flag": "graftings_strategies"}, "Did you mean 'grafting_strategies'"),
}


@pytest.mark.parametrize("what", WRONG_STARTS)
def test_what_cannot_begin_is_refused_in_one_sentence_and_nothing_changes(where, capsys, what):
    given, said = WRONG_STARTS[what]
    before = (where / "flags.json").read_bytes()
    assert start(where, **given) == 2
    told = capsys.readouterr().err
    assert any(part in told for part in said.split("|")), told
    assert (where / "flags.json").read_bytes() == before
    assert not (where / "state").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--min-runs", "0"),
        ("--min-runs", "2.5"),
        ("--worse-by", "-1"),
        ("--more-errors", "100"),
        ("--patience", "soon"),
    ],
)
def test_criteria_that_make_no_sense_are_named(where, capsys, option, value):
    assert start(where, option, value) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bus", ""], "is no URL of a bus"),
        (["--bus", "nats:"], "nats"),
        (["--bus", "memory:"], "within one process"),
        (["--bus", "foo:bar"], "is no URL of a bus"),
        (["--bus", "/some/folder"], "is no URL of a bus"),
        (["--runs", "runs", "--state", "flags.json"], "flags.json is a file"),
    ],
)
def test_a_bus_that_is_none_and_a_state_that_is_a_file_are_refused_at_the_start(
    where, capsys, monkeypatch, options, said
):
    monkeypatch.chdir(where)
    before = (where / "flags.json").read_bytes()
    line = ["rollout", "start", "--flag", FLAG, "--plan", "10,100", "--flags", "flags.json", "--state", "state"]
    assert main([*line, *options]) == 2
    assert said in capsys.readouterr().err
    assert (where / "flags.json").read_bytes() == before
    assert not (where / "state").exists()


def test_a_bus_in_a_file_is_found_from_anywhere(where, capsys, monkeypatch):
    monkeypatch.chdir(where)
    line = ["rollout", "start", "--flag", FLAG, "--plan", "10,100", "--flags", "flags.json", "--state", "state"]
    assert main([*line, "--bus", "sqlite:bus.db?bound=100"]) == 0
    assert f"sqlite:{where / 'bus.db'})" in capsys.readouterr().out
    (where / "elsewhere").mkdir()
    monkeypatch.chdir(where / "elsewhere")
    assert do(where, "advance") == 0
    assert not list((where / "elsewhere").iterdir())


@pytest.mark.parametrize("action", ["status", "advance", "rollback"])
def test_nothing_can_be_done_before_the_start(where, capsys, action):
    assert do(where, action) == 2
    assert "There is no rollout" in capsys.readouterr().err
    assert not (where / "state").exists()


def test_the_directory_of_another_rollout_is_refused(where, capsys):
    start(where)
    set_flag(where / "flags.json", "message_bus", "0%")
    assert start(where, flag="message_bus") == 2
    assert do(where, "advance", "--flag", "message_bus") == 2
    assert capsys.readouterr().err.count("holds a rollout of grafting_strategies, not of message_bus") == 2


WRONG_LINES = {
    "no flag": (["start"], "needs --flag"),
    "no source": (["start", "--flag", FLAG, "--plan", "1,2", "--flags", "f"], "either --runs DIR or --bus URL"),
    "a plan for advance": (["advance", "--plan", "1,2"], "--plan belongs to 'esper rollout start'"),
    "watching a start": (["start", "--watch", "3"], "needs --flag"),
    "watching a brake": (["rollback", "--watch", "3"], "--watch belongs to 'esper rollout advance'"),
    "both": (["advance", "--watch", "3", "--dry-run"], "contradict each other"),
    "no action": (["retreat"], "invalid choice"),
}


@pytest.mark.parametrize("what", WRONG_LINES)
def test_lines_that_make_no_sense_are_refused(where, capsys, what):
    line, said = WRONG_LINES[what]
    assert main(["rollout", *line, "--state", str(where / "state")]) == 2
    assert said in capsys.readouterr().err
