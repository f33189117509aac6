"""A rollout over its files: begun, looked at, taken back, gone on with after a death, kept from a second operator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from esper.contracts.errors import BusUnavailableError, ConfigError
from esper.evaluation.rollout import audit
from esper.evaluation.rollout.rollout import Rollout
from tests.evaluation.rollout.world import FLAG, WatchedStore, health, terms

NOW = 10_000.0


class Told:
    """A source that tells what it is given."""

    def __init__(self, *runs, error=None):
        self.told, self.error = list(runs), error

    def runs(self, flag, since, known):
        if self.error is not None:
            raise self.error
        return [run for run in self.told if run.run not in known]

    def close(self):
        pass


def good(first: int, count: int = 4) -> list:
    return [health(first + n, is_on=n % 2 == 1) for n in range(count)]


@pytest.fixture
def store():
    return WatchedStore()


@pytest.fixture
def rollout(tmp_path, store):
    begun = Rollout(tmp_path / "state", store, clock=lambda: NOW)
    begun.start(terms())
    return begun


def lines(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]


def test_from_the_first_share_to_the_last(rollout, store, tmp_path):
    for first in (0, 10, 20):
        state, _ = rollout.look(Told(*good(first)))
    assert state.outcome == "completed"
    assert store.history == [0.0, 10.0, 50.0, 100.0]
    assert [line["event"] for line in lines(tmp_path)] == ["started", "set", *["look", "set"] * 2, "look"]
    assert {one["measure"] for one in lines(tmp_path)[-1]["measures"]} == {"step time", "loss", "errors", "leaks"}
    assert rollout.look(Told(*good(30)))[1] is None


def test_harm_turns_the_flag_off_for_good(rollout, store, tmp_path):
    bad = [health(n, is_on=n % 2 == 1, step_s=1 + n % 2) for n in range(60)]
    state, decision = rollout.look(Told(*bad))
    assert (state.outcome, decision.verdict, store.percent) == ("rolled back", "rollback", 0.0)
    assert rollout.look(Told(*good(100)))[1] is None
    assert store.history == [0.0, 10.0, 0.0]


def test_a_dry_run_tells_and_changes_nothing(rollout, store, tmp_path):
    before = (tmp_path / "state" / "audit.jsonl").read_bytes()
    _, decision = rollout.look(Told(*good(0)), dry_run=True)
    assert decision.verdict == "promote"
    assert (tmp_path / "state" / "audit.jsonl").read_bytes() == before
    assert store.percent == 10.0


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), BusUnavailableError("away")])
def test_a_source_that_is_away_is_a_lack_of_data(rollout, store, tmp_path, error):
    _, decision = rollout.look(Told(error=error))
    assert (decision.verdict, store.percent) == ("hold", 10.0)
    assert lines(tmp_path)[-1]["silence"] == str(error)
    late = Rollout(tmp_path / "state", store, clock=lambda: NOW + 90_000)
    assert late.look(Told(error=error))[0].outcome == "rolled back"


def test_what_was_decided_is_done_later_where_the_store_did_not_take_it(rollout, store, tmp_path):
    store.error = ConfigError("the disk is full")
    with pytest.raises(ConfigError, match="full"):
        rollout.look(Told(*good(0)))
    assert not audit.read(tmp_path / "state").is_set
    store.error = None
    rollout.look(Told())
    assert store.percent == 50.0
    assert sum(line.get("verdict") == "promote" for line in lines(tmp_path)) == 1


def test_half_a_line_is_cut_off_and_nothing_else(rollout, tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "look", "verd')
    assert audit.read(tmp_path / "state").percent == 10.0
    rollout.look(Told(*good(0)))
    assert path.read_bytes().startswith(whole)
    assert audit.read(tmp_path / "state").percent == 50.0


def test_a_damaged_line_is_named_and_nothing_changes(rollout, store, tmp_path):
    path = tmp_path / "state" / "audit.jsonl"
    path.write_bytes(path.read_bytes() + b'{"event": "look"}\n')
    with pytest.raises(ConfigError, match="damaged in line 3"):
        rollout.look(Told(*good(0)))
    assert store.history == [0.0, 10.0]


def test_a_flag_that_somebody_else_has_changed_is_left_alone(rollout, store):
    store.percent = 0.0
    with pytest.raises(ConfigError, match="somebody else has changed it"):
        rollout.look(Told(*good(0)))
    assert store.percent == 0.0
    assert rollout.take_back("it was switched off").outcome == "rolled back"


def test_a_second_operator_is_refused_but_not_the_brake(rollout, store, tmp_path):
    other = Rollout(tmp_path / "state", store, clock=lambda: NOW)
    with rollout.operating():
        with (
            pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* Wait for it, or end it"),
            other.operating(),
        ):
            pass
        assert other.take_back("smoke").outcome == "rolled back"
    with other.operating():
        pass
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["audit.jsonl"]


def test_a_lock_of_another_host_is_explained(rollout, tmp_path):
    lock = tmp_path / "state" / "operator.lock"
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01"}))
    with pytest.raises(ConfigError, match=r"process 7 on elsewhere.*delete .*operator.lock"), rollout.operating():
        pass


def test_a_rollout_under_way_is_not_begun_again_and_one_that_is_over_is(rollout, store):
    with pytest.raises(ConfigError, match="is under way, at 10 %"):
        rollout.start(terms())
    rollout.take_back("enough")
    assert rollout.start(terms()).percent == 10.0
    assert store.history == [0.0, 10.0, 0.0, 10.0]


def test_a_plan_below_what_the_flag_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=f"{FLAG} is on for 25 % .* it would fall"):
        Rollout(tmp_path / "state", WatchedStore(25.0)).start(terms())
    assert not (tmp_path / "state").exists()


def killed(how: str, directory: Path, kills: int) -> dict:
    script = Path(__file__).with_name("killed_rollout.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, str(script), how, str(directory), str(kills)]
    done = subprocess.run(line, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_killed_at_any_moment_it_goes_on_and_skips_and_repeats_nothing(tmp_path):
    told = killed("ours", tmp_path, 30)
    assert told["unexplained"] == 0
    assert told["steps while being killed"] > 1
    assert (told["set"], told["outcome"]) == ([float(percent) for percent in range(1, 101)], "completed")


def test_a_rollout_that_sets_the_flag_first_is_found_out(tmp_path):
    """The control: the harness sees what goes wrong where the decision is not written before the flag is set."""
    assert killed("sets first", tmp_path, 20)["unexplained"] > 0
