"""A store of flags decides as told, and whatever becomes of it, something safe is decided."""

import json
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from esper.contracts.errors import ConfigError
from esper.contracts.flags import FLAGS, NOT_IN_PLAY
from esper.flags import FlagStore, last_good, reading, resolve, set_flag
from esper.flags.document import parse, text_of
from tests.flags.faults import FAULTS

NAME = "message_bus"
VARIABLE = "ESPER_FLAG_MESSAGE_BUS"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store in which message_bus is on, and others are not."""
    path = tmp_path / "flags.json"
    set_flag(path, NAME, "on")
    set_flag(path, "extended_lifecycle", "off")
    return path


def is_on(path: Path | None, model_id: str = "m", environment: dict[str, str] | None = None, name: str = NAME) -> bool:
    return resolve(model_id, path, environment or {}).is_on(name)


def test_without_store_and_environment_flags_are_not_in_play():
    flags = resolve("m", None, {"HOME": "/"})
    assert all(flags.is_on(name) and flags[name].reason == NOT_IN_PLAY for name in FLAGS)
    assert not flags.are_in_play


def test_a_flag_in_the_environment_alone_leaves_the_others_out_of_play():
    flags = resolve("m", None, {VARIABLE: "0"})
    assert [name for name in FLAGS if not flags.is_on(name)] == [NAME]
    assert flags.are_in_play


def test_what_a_store_does_not_tell_is_off(path):
    assert not is_on(path, name="grafting_strategies")


@pytest.mark.parametrize(
    ("share", "lists", "environment", "expected"),
    [
        ("on", {"allow": ["m"]}, "0", False),
        ("on", {"allow": ["m"]}, "false", False),
        ("on", {"allow": ["m"]}, "OFF", False),
        ("off", {"allow": ["m"]}, "", False),  # the switch for all, whoever is allowed
        ("off", {}, "1", False),
        ("off", {}, "100%", False),
        ("on", {"block": ["m"]}, "1", False),
        ("on", {"block": ["m"]}, "", False),
        ("0%", {}, "true", True),
        ("on", {"allow": ["m"]}, "0%", False),
        ("0%", {"allow": ["m"]}, "", True),
        ("0%", {"allow": ["another"]}, "", False),
        ("100%", {}, "", True),
        ("on", {"block": ["another"]}, "", True),
    ],
)
def test_the_order_of_what_decides(tmp_path, share, lists, environment, expected):
    set_flag(tmp_path / "f.json", NAME, share, **lists)
    flags = resolve("m", tmp_path / "f.json", {VARIABLE: environment})
    assert flags.is_on(NAME) is expected, flags[NAME].reason


def test_a_share_in_the_environment_takes_the_same_models_as_in_the_store(tmp_path):
    set_flag(tmp_path / "f.json", NAME, "40%")
    ids = [f"m{number}" for number in range(200)]
    by_store = [is_on(tmp_path / "f.json", one) for one in ids[:60]]
    store = FlagStore(None, {VARIABLE: "40%"})
    by_environment = [store.resolve(one).is_on(NAME) for one in ids[:60]]
    assert by_store == by_environment
    assert 0 < sum(by_store) < 60


def test_reasons_name_what_decided(path):
    set_flag(path, NAME, "30%", allow=["vip"], block=["bad"])
    reasons = [resolve(one, path, {})[NAME].reason for one in ("vip", "bad")]
    assert reasons == ["vip is allowed in flags.json", "bad is blocked in flags.json"]
    assert "the 30 % of flags.json" in resolve("m", path, {})[NAME].reason
    assert resolve("m", path, {VARIABLE: "0"})[NAME].reason == f"{VARIABLE} switches it off"


def test_a_rule_by_hand_is_evaluated_by_flagd(tmp_path):
    rule = {"if": [{"starts_with": [{"var": "targetingKey"}, "big-"]}, "yes", "no"]}
    flag = {"state": "ENABLED", "variants": {"yes": True, "no": False}, "defaultVariant": "no", "targeting": rule}
    (tmp_path / "f.json").write_text(text_of({"flags": {NAME: flag}}))
    assert [is_on(tmp_path / "f.json", one) for one in ("big-1", "small-1")] == [True, False]
    with pytest.raises(ConfigError, match="not of the shape that Esper writes"):
        set_flag(tmp_path / "f.json", NAME, "50%")
    set_flag(tmp_path / "f.json", NAME, "off")
    assert not is_on(tmp_path / "f.json", "big-1")


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_start_a_faulty_store_without_a_copy_switches_all_off(path, fault):
    last_good.path_of(path).unlink()
    FAULTS[fault](path)
    with pytest.warns(RuntimeWarning, match="cannot be used") as told:
        flags = resolve("m", path, {})
    assert len(told) == 1
    assert not any(flags.is_on(name) for name in FLAGS)


@pytest.mark.parametrize("fault", FAULTS)
def test_at_the_start_a_faulty_store_counts_as_it_last_was(path, fault):
    resolve("m", path, {})
    FAULTS[fault](path)
    with pytest.warns(RuntimeWarning, match="What it last said counts"):
        flags = resolve("m", path, {})
    assert [name for name in FLAGS if flags.is_on(name)] == [NAME]
    assert "as it last was" in flags[NAME].reason


@pytest.mark.parametrize("fault", FAULTS)
def test_in_a_long_life_a_store_that_becomes_faulty_counts_as_it_last_was(path, fault):
    store = FlagStore(path, {}, look_every_s=0)
    assert store.resolve("m").is_on(NAME)
    last_good.path_of(path).unlink()
    good = path.read_bytes()
    FAULTS[fault](path)
    with pytest.warns(RuntimeWarning, match="What it last said counts"):
        assert store.resolve("m").is_on(NAME)
    assert store.resolve("another").is_on(NAME)  # without another warning, which would be an error
    assert not store.resolve("m").is_on("extended_lifecycle")
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(good.replace(b'"DISABLED"', b'"ENABLED"'))
    set_flag(path, NAME, "off")
    assert not store.resolve("m").is_on(NAME)


def test_the_faults_are_faults_and_the_store_is_none(path):
    """Else the tests above would show nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_on(path)
    assert len(FAULTS) >= 12


def test_no_value_at_any_place_of_a_store_is_more_than_refused(tmp_path):
    """Whatever somebody has put into the file by hand."""
    whole = json.loads(text_of(set_flag(tmp_path / "flags.json", NAME, "25%", allow=["a"], block=["b"]).value))
    refused = 0
    for place in places(whole):
        for value in (None, True, -1, 1.5, "x", [], {}, [[]], [{}], {"var": "x"}, 10**30):
            try:
                parse(json.dumps(put(whole, place, value)).encode())
            except ConfigError:
                refused += 1
    assert refused > 50


def places(value, above=()):
    """Where values stand in nested JSON, as tuples of keys."""
    yield above
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*above, key))


def put(tree, place, value):
    """Nested JSON with something else at a place."""
    if not place:
        return value
    key, *rest = place
    below = put(tree[key], rest, value)
    if isinstance(tree, dict):
        return {**tree, key: below}
    return [*tree[:key], below, *tree[key + 1 :]]


def test_a_store_that_does_not_answer_is_not_waited_for(path, monkeypatch):
    store = FlagStore(path, {}, look_every_s=0, patience_s=0.05)
    assert store.resolve("m").is_on(NAME)
    path.write_bytes(path.read_bytes().replace(b'"ENABLED"', b'"DISABLED"'))
    answers, really = threading.Event(), reading.os.stat
    monkeypatch.setattr(reading.os, "stat", lambda path: answers.wait(10) and really(path))
    with pytest.warns(RuntimeWarning, match=r"no answer within 0\.05 s"):
        assert store.resolve("m").is_on(NAME)
    assert store.resolve("m").is_on(NAME)  # no second read is begun meanwhile
    assert sum(thread.name.startswith("esper reads") for thread in threading.enumerate()) == 1
    answers.set()
    deadline = time.monotonic() + 10
    while store.resolve("m").is_on(NAME):
        assert time.monotonic() < deadline


def test_a_folder_that_does_not_answer_is_not_waited_for_at_the_start(path, monkeypatch):
    """Neither for the store nor for the copy that lies beside it."""
    answers, really = threading.Event(), reading.os.stat
    monkeypatch.setattr(reading.os, "stat", lambda path: answers.wait(10) and really(path))
    with pytest.warns(RuntimeWarning, match=r"no answer within 0\.05 s\. Every flag .* is off"):
        assert not FlagStore(path, {}, patience_s=0.05).resolve("m").is_on(NAME)
    answers.set()


def test_a_copy_that_is_damaged_is_not_believed(path):
    copy = last_good.path_of(path)
    copy.write_bytes(copy.read_bytes().replace(b"ENABLED", b"DISABLE"))
    path.unlink()
    with pytest.warns(RuntimeWarning, match="is off"):
        assert not is_on(path)


def test_where_no_copy_can_be_kept_the_flags_count_and_it_is_told_once(path):
    last_good.path_of(path).unlink()
    (last_good.path_of(path) / "in the way").mkdir(parents=True)
    store = FlagStore(path, {}, look_every_s=0)
    with pytest.warns(RuntimeWarning, match="No copy"):
        assert store.resolve("m").is_on(NAME)
    path.write_bytes(path.read_bytes() + b"\n")
    assert store.resolve("m").is_on(NAME)  # without another warning, which would be an error
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_a_name_that_is_no_flag_is_told_and_the_flags_count(path):
    value = json.loads(path.read_bytes())
    value["flags"]["mesage_bus"] = value["flags"][NAME]
    path.write_text(json.dumps(value))
    with pytest.warns(RuntimeWarning, match="'mesage_bus', which is no flag of Esper's. Did you mean 'message_bus'"):
        assert is_on(path)


def test_a_long_life_sees_changes_but_does_not_look_at_every_turn(path):
    store = FlagStore(path, {}, look_every_s=0.2)
    assert store.resolve("m").is_on(NAME)
    set_flag(path, NAME, "off")
    assert store.resolve("m").is_on(NAME)
    time.sleep(0.25)
    assert not store.resolve("m").is_on(NAME)


def test_other_users_of_openfeature_do_not_disturb(path):
    from openfeature import api

    store = FlagStore(path, {}, look_every_s=3600)
    assert store.resolve("m").is_on(NAME)
    api.clear_providers()
    assert store.resolve("another").is_on(NAME)


@pytest.mark.parametrize("model_id", ["", " ", None, 7, ["m"]])
def test_a_model_needs_a_name(model_id):
    store = FlagStore(None, {})
    for _ in range(2):  # also where it has looked already
        with pytest.raises(ConfigError, match="A model id must be"):
            store.resolve(model_id)
        store.resolve("m")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"ESPER_FLAG_MESAGE_BUS": "1"}, "Did you mean 'ESPER_FLAG_MESSAGE_BUS'"),
        ({VARIABLE: "101%"}, "0% to 100%"),
        ({VARIABLE: "-1%"}, "0% to 100%"),
        ({VARIABLE: "nan%"}, "0% to 100%"),
        ({VARIABLE: "1e-9%"}, "steps of 0.001%"),
        ({VARIABLE: "25"}, "Did you mean 25%"),
        ({VARIABLE: "yes please"}, "not 'yes please'"),
    ],
)
def test_what_the_environment_cannot_mean_is_refused(environment, told):
    with pytest.raises(ConfigError, match=told):
        resolve("m", None, environment)


def test_a_path_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match="No file can be called"):
        resolve("m", "a\0b", {})


def test_the_extra_is_needed_for_a_store_and_named(path, monkeypatch):
    """A switch in the environment works without it."""
    for name in [one for one in sys.modules if one.startswith(("openfeature", "esper.flags.flagd"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "openfeature", None)
    assert not is_on(None, environment={VARIABLE: "0"})
    with pytest.raises(ConfigError, match=r"esper-morphogenetic\[flags\]"):
        resolve("m", path, {})


def test_what_is_written_is_what_flagd_reads(path):
    """By the evaluator alone, without any of ours."""
    from openfeature.contrib.tools.flagd.core import FlagdCore
    from openfeature.evaluation_context import EvaluationContext

    set_flag(path, NAME, "50%", allow=["vip"])
    core = FlagdCore()
    core.set_flags(path.read_text())
    for one in ("vip", *map(str, range(20))):
        assert core.resolve_boolean_value(NAME, False, EvaluationContext(one)).value is is_on(path, one)
    assert parse(path.read_bytes()).rules.keys() == {NAME, "extended_lifecycle"}
