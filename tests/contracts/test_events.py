"""Every line that a run writes is one of the listed kinds and has its fields, and readers ask for no others."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from esper.contracts.commands import Command
from esper.contracts.events import ABSENT, EVENTS, Note, described, record
from esper.contracts.lifecycle import State
from esper.flags import resolve
from esper.observability.shapes import NEEDED
from tests.runtime.toy import Recipe, Script, growing

PAGE = Path(__file__).parents[2] / "docs" / "run-directory.md"


def test_the_page_of_the_run_directory_has_all_kinds_and_fields():
    assert described() in PAGE.read_text()


@pytest.mark.parametrize("name", EVENTS)
def test_every_field_is_described(name):
    (section,) = [one for one in described().split("### ") if one.startswith(f"`{name}`")]
    rows = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    if name == "veto":  # described as refused
        rows = [field.name for field in fields(EVENTS["refused"])]
    assert sorted(rows) == sorted(field.name for field in fields(EVENTS[name]))


def test_a_field_that_is_absent_is_left_out():
    assert record(Note(text="so")) == {"event": "note", "text": "so"}
    assert record(Note(text="so", step=3)) == {"event": "note", "text": "so", "step": 3}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_readers_need_no_field_that_may_be_missing(name):
    kind = {field.name: field.default is ABSENT for field in fields(EVENTS[name])}
    assert NEEDED[name].keys() <= kind.keys()
    assert not any(kind[needed] for needed in NEEDED[name]), "a field that readers need may be missing"


def test_every_kind_of_event_is_known_to_readers():
    assert NEEDED.keys() == EVENTS.keys()


def test_the_lines_of_runs_have_the_fields_of_their_kinds(tmp_path):
    config = growing(layers={"": 1, "0": 2}, keep_looks=(0.6, 0.8), round_fraction=0.1)
    lines = []
    for trial in ("round", "live"):
        one = Recipe(config, policy=Script({1: [""], 6: ["0"]}, trial=trial)).build(
            directory=tmp_path / trial, flags=resolve("m", None, {"ESPER_FLAG_MESSAGE_BUS": "0"})
        )
        one.session.submit(Command("", "all", State.FOSSILIZED))
        one.session.submit(Script({}, hidden=10_000).command("0"))
        one.session.rechunk("0", 1)
        one.train()
        one.session.finish()
        for log in ("audit", "metrics"):
            found = [json.loads(line) for line in (tmp_path / trial / f"{log}.jsonl").read_text().splitlines()]
            assert {EVENTS[line["event"]].log for line in found} == {log}
            lines += found
    for line in lines:
        named = {field.name: field.default is ABSENT for field in fields(EVENTS[line["event"]])}
        present = line.keys() - {"event", "time"}
        assert present <= named.keys()
        assert {name for name, may_be_missing in named.items() if not may_be_missing} <= present
    rare = {"fault", "recovery", "emergency", "rollback", "note"}
    assert {line["event"] for line in lines} >= EVENTS.keys() - rare
