"""A store is changed as a whole or not at all, and no writer loses what another wrote."""

import json
import threading

import pytest

from esper.contracts.errors import ConfigError
from esper.flags import edit, last_good, set_flag
from esper.flags.edit import read
from esper.flags.lock import held

NAME = "message_bus"


def test_a_store_is_made_and_other_flags_stay(tmp_path):
    path = tmp_path / "flags.json"
    set_flag(path, NAME, "12.5%", allow=["a"], block=["b"])
    value = json.loads(path.read_bytes())
    value["metadata"] = {"team": "vision"}
    path.write_text(json.dumps(value))
    set_flag(path, "extended_lifecycle", "on")
    after = read(path)
    assert str(after.rules[NAME]) == "12.5 %; allowed a; blocked b"
    assert after.value["metadata"] == {"team": "vision"}
    assert last_good.read(last_good.reader(path, 1.0)) == path.read_bytes()


def test_off_keeps_share_and_lists_for_the_day_it_is_on_again(tmp_path):
    path = tmp_path / "flags.json"
    set_flag(path, NAME, "20%", allow=["a"])
    set_flag(path, NAME, "off")
    assert str(read(path).rules[NAME]) == "off for all; allowed a"
    set_flag(path, NAME, "30%")
    assert str(read(path).rules[NAME]) == "30 %; allowed a"


def test_models_leave_lists_and_enter_others(tmp_path):
    path = tmp_path / "flags.json"
    set_flag(path, NAME, "on", allow=["a", "b"])
    set_flag(path, NAME, block=["a", "c", "c"], forget=["a"])
    assert str(read(path).rules[NAME]) == "100 %; allowed b; blocked a, c"


@pytest.mark.parametrize(
    ("name", "share", "lists", "told"),
    [
        ("mesage_bus", "on", {}, "Did you mean 'message_bus'"),
        (NAME, "100.1%", {}, "0% to 100%"),
        (NAME, "-3%", {}, "0% to 100%"),
        (NAME, "0.0001%", {}, "steps of 0.001%"),
        (NAME, "half", {}, "not 'half'"),
        (NAME, "on", {"allow": ["a"], "block": ["a"]}, "both allowed and blocked"),
        (NAME, None, {"block": ["old"]}, "'old' cannot be both"),
        (NAME, None, {"block": [""]}, "must not be empty"),
        (NAME, None, {"allow": [" "]}, "must not be empty"),
    ],
)
def test_what_cannot_be_set_is_refused_and_nothing_is_changed(tmp_path, name, share, lists, told):
    path = tmp_path / "flags.json"
    set_flag(path, NAME, "on", allow=["old"])
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=told):
        set_flag(path, name, share, **lists)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_a_store_that_is_damaged_is_not_written_over(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text('{"flags": {')
    with pytest.raises(ConfigError, match=r"cannot be used\. It is no JSON"):
        set_flag(path, NAME, "on")
    assert path.read_text() == '{"flags": {'


def test_writers_do_not_lose_each_others_edits(tmp_path):
    path = tmp_path / "flags.json"
    threads = [threading.Thread(target=set_flag, args=(path, NAME), kwargs={"allow": [f"m{i}"]}) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rule = read(path).rules[NAME]
    assert rule is not None
    assert sorted(rule.allow) == sorted(f"m{i}" for i in range(16))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["flags.json", "flags.json.good"]


def test_a_writer_that_does_not_end_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(edit, "PATIENCE_S", 0.05)
    lock = tmp_path / ".flags.json.lock"
    with held(lock, "it"), pytest.raises(ConfigError, match="Another writer holds"):
        set_flag(tmp_path / "flags.json", NAME, "on")


def test_what_a_writer_that_was_killed_left_keeps_nobody(tmp_path):
    (tmp_path / ".flags.json.lock").touch()
    set_flag(tmp_path / "flags.json", NAME, "on")
    assert read(tmp_path / "flags.json").rules.keys() == {NAME}


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "flags.json").symlink_to(tmp_path / "real" / "flags.json")
    set_flag(tmp_path / "flags.json", NAME, "on")
    assert (tmp_path / "flags.json").is_symlink()
    assert read(tmp_path / "real" / "flags.json").rules.keys() == {NAME}


def test_who_cannot_switch_off_by_a_damaged_store_is_told_what_switches_off(tmp_path):
    path = tmp_path / "flags.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"set ESPER_FLAG_MESSAGE_BUS=0 in their environment"):
        set_flag(path, "message_bus", "off")
    with pytest.raises(ConfigError, match=r"It is no JSON") as caught:
        set_flag(path, "message_bus", "10%")
    assert "ESPER_FLAG" not in str(caught.value)
    assert path.read_text() == "{"
