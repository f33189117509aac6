"""Real runs as traces: one tree each, whatever they do."""

import json
from pathlib import Path

import pytest

from esper.observability.tracing import RunTracing, Traces, otlp
from tests.collector import Seen, collecting, faults_of
from tests.runtime.toy import Recipe, Script, growing

ROUND = Recipe(growing(layers=["", "0"]), policy=Script({1: ["", "0"]}))
SIDE_BY_SIDE = Recipe(growing(layers=["", "0"], arms="side_by_side"), policy=Script({1: ["", "0"]}))
LIVE = Recipe(growing(trial="live"), policy=Script({1: [""]}, trial="live"))


def traced(recipe: Recipe, url: str, directory: Path, *, is_resumed: bool = False, stops_at: int | None = None) -> None:
    """A run to its end, or until it is interrupted at a step; perhaps from a checkpoint."""
    tracing = RunTracing(Traces(otlp(url), "esper-run"), "toy")
    trial = recipe.build(directory=directory, checkpoint_steps=5, on_event=tracing)
    if is_resumed:
        trial.session.load(directory / "checkpoints")
    tracing.follow(trial.session.events)
    try:
        if stops_at is not None:
            trial.train_until(lambda now: now.session.step_count >= stops_at)
        else:
            trial.train()
            trial.session.finish()
    finally:
        assert tracing.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[list[Seen], Path]:
    """A run with a round, and its directory."""
    directory = tmp_path_factory.mktemp("run")
    with collecting() as collector:
        traced(ROUND, collector.url, directory)
    return collector.spans, directory


def check(spans: list[Seen], arms: int, over: str) -> None:
    assert faults_of(spans) == []
    (trial,) = (one for one in spans if one.name == over)
    assert [one.parent for one in spans if one.name == "arm"] == [trial.id] * arms
    assert sum(one.name == "epoch" for one in spans) == 12
    assert sum(one.name == "lifecycle" for one in spans) == arms


def test_a_run_is_one_tree_with_times_that_add_up(plain):
    spans, _ = plain
    check(spans, 2, "round")
    (run,), (round_,) = ([one for one in spans if one.name == name] for name in ("run", "round"))
    epochs = [one for one in spans if one.name == "epoch"]
    assert sum(one.end - one.begin for one in epochs) == max(one.end for one in epochs) - run.begin
    assert sum(one.seconds for one in spans if one.name == "arm") <= round_.seconds


@pytest.mark.parametrize(("recipe", "arms", "over"), [(SIDE_BY_SIDE, 2, "round"), (LIVE, 1, "trial")])
def test_so_is_one_of_another_kind(recipe, arms, over, tmp_path):
    with collecting() as collector:
        traced(recipe, collector.url, tmp_path)
    check(collector.spans, arms, over)


def test_the_tree_has_what_the_logs_have(plain):
    spans, directory = plain
    text = "".join((directory / name).read_text() for name in ("audit.jsonl", "metrics.jsonl"))
    lines = [json.loads(line) for line in text.splitlines()]
    ends = {"arm_ended": "arm", "round_ended": "round", "field_report": "lifecycle", "epoch": "epoch"}
    for event, name in ends.items():
        told = sorted(round(line["time"] * 1000) for line in lines if line["event"] == event)
        assert sorted(round(one.end / 1e6) for one in spans if one.name == name) == told
    moved = sum(line["event"] in ("transition", "keep_look") and line["lifecycle"] is not None for line in lines)
    assert sum(len(one.moments) for one in spans if one.name == "lifecycle") == moved


def test_a_run_that_is_gone_on_with_is_one_tree(tmp_path):
    """It was interrupted in its round: what was under way then is told as it was, and once more as a whole."""
    with collecting() as first:
        traced(ROUND, first.url, tmp_path, stops_at=30)
    assert faults_of(first.spans) == []
    outcomes = {one.name: one.attributes.get("esper.outcome") for one in first.spans}
    assert outcomes["run"] == outcomes["round"] == "interrupted"
    with collecting() as second:
        traced(ROUND, second.url, tmp_path, is_resumed=True)
    whole = {one.id: one for one in [*first.spans, *second.spans]}
    assert faults_of(list(whole.values())) == []
    (before,), (after,) = first.named("run"), second.named("run")
    assert (before.id, before.begin) == (after.id, after.begin)
    assert before.end < after.end
    assert after.attributes["esper.outcome"] == "finished"
    (round_,) = second.named("round")
    assert round_.id == first.named("round")[0].id


def broken(spans: list[Seen]) -> dict[str, list[Seen]]:
    """Trees that are none."""
    root = next(one for one in spans if one.name == "run")
    arm = next(one for one in spans if one.name == "arm")
    others = [one for one in spans if one is not arm]
    return {
        "not one root": [one for one in spans if one is not root],
        "one id twice": [*spans, arm],
        "arm is an orphan": [*others, Seen(**vars(arm) | {"parent": "f" * 16})],
        "arm is not within round": [*others, Seen(**vars(arm) | {"end": root.end + 1})],
        "arm ends before it begins": [*others, Seen(**vars(arm) | {"end": 0})],
        "not one trace": [*others, Seen(**vars(arm) | {"trace": "f" * 32})],
        "a link leads nowhere": [*others, Seen(**vars(arm) | {"links": [("f" * 32, "f" * 16)]})],
        "epochs leave gaps": [one for one in spans if one.attributes.get("esper.epoch") != 5],
    }


def test_the_check_of_trees_finds_what_is_wrong(plain):
    for fault, spans in broken(plain[0]).items():
        assert fault in faults_of(spans)
