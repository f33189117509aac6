"""``esper flags``, and ``esper run --flags``."""

import json
from pathlib import Path

import pytest
import yaml

from esper.cli.main import main
from esper.flags import set_flag
from esper.observability.record import read

RUN = ["run", "--no-controls", "--plain", "--epochs", "3"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def events(directory: str, kind: str) -> list[dict]:
    return [event for _, event in read(Path(directory)).of(kind)]


def test_a_store_is_made_shown_explained_and_checked(capsys):
    store = ["--flags", "flags.json"]
    assert main(["flags", "set", "message_bus", "25%", "--allow", "vip", "--block", "bad", *store]) == 0
    assert main(["flags", "set", "extended_lifecycle", "off", *store]) == 0
    assert main(["flags", "validate", *store]) == 0
    capsys.readouterr()
    assert main(["flags", "list", *store]) == 0
    told = capsys.readouterr().out
    assert "message_bus           25 %; allowed vip; blocked bad\n" in told
    assert "extended_lifecycle    off for all\n" in told
    assert main(["flags", "explain", "vip", *store]) == 0
    told = capsys.readouterr().out
    assert "message_bus           on   vip is allowed in flags.json\n" in told
    assert "grafting_strategies   off  flags.json does not tell, and off is the default\n" in told


def test_what_the_environment_says_is_told(capsys, monkeypatch):
    set_flag("flags.json", "message_bus", "on")
    monkeypatch.setenv("ESPER_FLAG_MESSAGE_BUS", "0")
    main(["flags", "list", "--flags", "flags.json"])
    main(["flags", "explain", "m", "--flags", "flags.json"])
    told = capsys.readouterr().out
    assert "100 %; ESPER_FLAG_MESSAGE_BUS says 0 %" in told
    assert "message_bus           off  ESPER_FLAG_MESSAGE_BUS switches it off" in told


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["set", "mesage_bus", "on"], "Did you mean 'message_bus'?"),
        (["set", "message_bus", "101%"], "from 0% to 100%"),
        (["set", "message_bus", "-5%"], "from 0% to 100%"),
        (["set", "message_bus", "25"], "Did you mean 25%?"),
        (["set", "message_bus", "on", "--allow", "a", "--block", "a"], "'a' cannot be both allowed and blocked"),
        (["set", "message_bus"], "Say which flag and what"),
        (["list", "message_bus"], "takes no 'message_bus'"),
        (["validate", "--allow", "a"], "are of 'esper flags set'"),
        (["explain"], "Say which model"),
        (["shift"], "invalid choice"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_and_nothing_is_changed(capsys, line, told):
    set_flag("flags.json", "message_bus", "on")
    before = Path("flags.json").read_bytes()
    assert main(["flags", *line, "--flags", "flags.json"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert Path("flags.json").read_bytes() == before


@pytest.mark.parametrize("action", ["list", "validate", "explain"])
@pytest.mark.parametrize("content", [None, "", '{"flags": {"message_bus": 1}}'])
def test_a_store_that_cannot_be_used_is_told(capsys, action, content):
    if content is not None:
        Path("flags.json").write_text(content)
    assert main(["flags", action, *["m"][: action == "explain"], "--flags", "flags.json"]) == 2
    assert "The store of flags flags.json cannot be" in capsys.readouterr().err


def test_an_unknown_flag_in_a_store_is_found_by_validate(capsys):
    set_flag("flags.json", "message_bus", "on")
    text = Path("flags.json").read_text().replace("message_bus", "mesage_bus")
    Path("flags.json").write_text(text)
    assert main(["flags", "validate", "--flags", "flags.json"]) == 2
    assert "Did you mean 'message_bus'?" in capsys.readouterr().err


def test_a_rule_that_flagd_cannot_evaluate_is_found_by_validate(capsys):
    set_flag("flags.json", "message_bus", "on")
    Path("flags.json").write_text(Path("flags.json").read_text().replace("fractional", "fractionnal"))
    assert main(["flags", "validate", "--flags", "flags.json"]) == 2
    assert "The rule of 'message_bus' fails" in capsys.readouterr().err


def test_a_wrong_variable_stops_a_run_before_anything_is_written(capsys, monkeypatch):
    monkeypatch.setenv("ESPER_FLAG_EXTENDED_LIFECYCLE", "often")
    assert main([*RUN, "--output", "run"]) == 2
    assert "ESPER_FLAG_EXTENDED_LIFECYCLE must be on, off" in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_run_has_the_flags_of_its_model_and_tells_them(capsys):
    set_flag("flags.json", "chunked_architecture", "0%", allow=["big"])
    set_flag("flags.json", "extended_lifecycle", "on")
    for model_id, seeds in (("big", True), ("small", False)):
        assert main([*RUN, "--flags", "flags.json", "--model-id", model_id, "--output", model_id]) == 0
        (model,) = events(model_id, "model")
        assert (max(place["seeds"] for place in model["places"]) > 1) is seeds
        (event,) = events(model_id, "flags")
        kept = json.loads(Path(model_id, "flags.json").read_text())
        assert kept == {"model_id": event["model_id"], "flags": event["flags"]}
        assert event["model_id"] == model_id
    told = capsys.readouterr().out
    assert told.count("flag         chunked_architecture is off: outside the 0 % of flags.json") == 1
    page = Path("small", "report.html").read_text()
    assert "off for <code>small</code>: chunked_architecture, grafting_strategies, message_bus" in page


def test_without_flags_a_run_keeps_none():
    assert main([*RUN, "--output", "run"]) == 0
    assert not Path("run", "flags.json").exists()
    assert events("run", "flags") == []


def test_message_bus_off_the_bus_is_not_joined_and_told_once(capsys, monkeypatch):
    bus = ["--bus", "sqlite:bus.db"]
    assert main([*RUN, *bus, "--output", "joined"]) == 0
    assert Path("bus.db").exists()
    Path("bus.db").unlink()
    monkeypatch.setenv("ESPER_FLAG_MESSAGE_BUS", "off")
    capsys.readouterr()
    assert main([*RUN, *bus, "--policy", "remote", "--output", "alone"]) == 0
    assert capsys.readouterr().out.count("message_bus is off") == 1
    assert not Path("bus.db").exists()


def test_a_run_that_goes_on_keeps_its_flags_but_for_a_switch(capsys, monkeypatch):
    set_flag("flags.json", "extended_lifecycle", "on")
    assert main([*RUN, "--flags", "flags.json", "--output", "run"]) == 0
    assert yaml.safe_load(Path("run", "config.yaml").read_text())["flags"] == str(Path("flags.json").absolute())
    Path("run", "result.json").unlink()
    set_flag("flags.json", "chunked_architecture", "on")
    set_flag("flags.json", "extended_lifecycle", "off")
    capsys.readouterr()
    assert main(["run", "--resume", "last", "--output", "run", "--plain"]) == 0
    told = capsys.readouterr().out
    assert "chunked_architecture is off: flags.json" in told
    assert "extended_lifecycle is off: switched off for all in flags.json" in told
    began, now = events("run", "flags")
    assert began["flags"]["extended_lifecycle"]["is_on"]
    assert not now["flags"]["extended_lifecycle"]["is_on"]
    assert json.loads(Path("run", "flags.json").read_text())["flags"] == began["flags"]


def test_a_run_whose_store_is_gone_is_warned_and_trains():
    with pytest.warns(RuntimeWarning, match="cannot be read|cannot be used"):
        assert main([*RUN, "--flags", "nowhere.json", "--output", "run"]) == 0
    assert not any(flag["is_on"] for flag in events("run", "flags")[0]["flags"].values())
