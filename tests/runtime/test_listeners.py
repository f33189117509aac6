"""Whoever listens is told where nothing is half done, and whatever a listener does, the run goes on as without it."""

import json
from typing import Any

import pytest

import esper
from esper.contracts.commands import Command
from esper.contracts.lifecycle import State
from esper.runtime.record.log_files import LOOSE
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless

CONFIG = growing(layers=["", "0"], keep_looks=(0.95,))
TWO = Recipe(CONFIG, policy=Script({1: ["", "0"]}))
LIVE = Recipe(growing(keep_looks=(0.95,)), policy=Script({1: [""]}, trial="live"))


def finished(recipe: Recipe, **session: Any) -> Trial:
    trial = recipe.build(**session).train()
    trial.session.finish()
    return trial


def kept(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that a session keeps."""
    return [event for event in timeless(events) if event["event"] not in LOOSE]


def told_apart(trial: Trial) -> list[dict[str, Any]]:
    """All events but notes of listeners."""
    return [event for event in timeless(trial.session.events) if "A listener" not in event.get("text", "")]


@pytest.mark.parametrize("recipe", [TWO, LIVE], ids=["a round", "a live trial"])
def test_a_listener_that_raises_at_every_event_changes_nothing(recipe):
    def broken(event: dict[str, Any]) -> None:
        raise KeyError(event["event"]) if event["event"] == "epoch" else ZeroDivisionError

    heard: list[dict[str, Any]] = []
    trial, expected = finished(recipe, on_event=[broken, heard.append]), finished(recipe)
    assert trial.digest() == expected.digest()
    assert told_apart(trial) == told_apart(expected)
    assert len(trial.session.field_reports) == trial.run.books.lifecycles_begun > 0
    notes = [event["text"] for event in trial.events("note") if "A listener" in event["text"]]
    assert [name in text for name, text in zip(("ZeroDivisionError", "KeyError"), notes, strict=True)] == [True, True]
    assert "test_a_listener_that_raises" in notes[0]  # which one it was
    assert kept(heard) == kept(trial.session.events)


def test_a_listener_that_raises_where_it_happens_would_change_something(monkeypatch):
    """The control: called from within a transition, it leaves a lifecycle without an outcome."""
    trial = TWO.build()
    write = trial.run.journal.write

    def broken(event: Any) -> None:
        write(event)
        if getattr(event, "target", None) == "CULLED":
            raise ZeroDivisionError

    monkeypatch.setattr(trial.run.journal, "write", broken)
    with pytest.raises(ZeroDivisionError):
        trial.train()
    assert len(trial.session.field_reports) < trial.run.books.lifecycles_begun


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_from_a_listener_passes_and_what_it_had_not_heard_waits(error):
    heard: list[dict[str, Any]] = []

    def stop(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise error

    trial = TWO.build(on_event=stop)
    with pytest.raises(error):
        trial.train()
    trial.train(10)
    trial.session.finish()
    assert kept(heard) == kept(trial.session.events)


def test_a_listener_hears_from_when_it_subscribes_until_it_does_not():
    trial, heard = TWO.build(), []
    trial.train(1)
    end = trial.session.subscribe(heard.append)
    trial.train(1)
    end()
    end()
    trial.train(1)
    assert kept(heard) == [e for e in timeless(trial.session.events) if e.get("epoch") == 2]


def test_what_a_listener_does_to_an_event_nobody_else_sees(tmp_path):
    heard: list[dict[str, Any]] = []
    trial = finished(TWO, on_event=[dict.clear, heard.append], directory=tmp_path)
    assert timeless(heard) != []
    assert all("event" in event for event in [*heard, *trial.session.events])
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert kept(lines) == [event for event in kept(trial.session.events) if event["event"] != "epoch"]


def test_a_listener_that_asks_again_whenever_it_is_refused_holds_nothing_up():
    answers = []

    def insist(event: dict[str, Any]) -> None:
        if event["event"] == "refused" or (event["event"] == "epoch" and not answers):
            answers.append(trial.session.submit(Command("nowhere", "all", State.CANCELLED)))

    trial = Recipe(CONFIG, policy=Script({})).build(on_event=insist)
    trial.train(3)
    assert len(answers) > 3
    assert not any(answer.accepted for answer in answers)


@pytest.mark.parametrize("asked_in", few(["evaluate", "decide", "loss"], ["decide", "loss"]))
def test_nothing_can_be_asked_in_the_middle_of_a_step(asked_in):
    """It would act on a run in which something is half done."""
    trials: list[Trial] = []
    answers: list[Any] = []

    def ask() -> None:
        if trials and trials[0].session.step_count in (10, 15, 30) and len(answers) < 4:
            session = trials[0].session
            answers.append(session.submit(Script({}).command("0")))
            for method in (session.rollback, session.finish, lambda: session.germinate("0", "all")):
                with pytest.raises(esper.TransitionError, match="in the middle of a step"):
                    method()

    def evaluate(model):
        ask()
        return toy.evaluate(model)

    def loss(model, batch):
        ask()
        return toy.loss(model, batch)

    class Policy(Script):
        def decide(self, observation):
            ask()
            return super().decide(observation)

    own = {"evaluate": {"evaluate": evaluate}, "loss": {"loss": loss}, "decide": {"policy": Policy({1: [""]})}}
    recipe = Recipe(CONFIG, policy=Script({1: [""]}))
    trials.append(recipe.build(**own[asked_in]))
    trials[0].train()
    expected = recipe.build().train()
    assert answers
    assert not any(answer.accepted for answer in answers)
    assert len(trials[0].events("refused")) == len(answers)
    assert trials[0].digest() == expected.digest()


def test_after_an_epoch_a_listener_may_do_what_a_loop_may(tmp_path):
    def save(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 3:
            trial.session.save(tmp_path)

    trial = TWO.build(on_event=save)
    trial.train()
    resumed = TWO.build()
    resumed.session.load(tmp_path)
    assert resumed.train().digest() == trial.digest()
