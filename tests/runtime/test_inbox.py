"""Commands from other threads are answered within a step, also of an arm, and every one gets exactly one answer."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import esper
from esper.contracts.commands import Answer, Command
from esper.contracts.lifecycle import State
from esper.runtime.commands.inbox import Inbox
from tests.few import few
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

LONG_S = 600
"""A guard against hanging; nothing takes so long."""


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a call elsewhere; what it returned or raised lands in the list."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(call())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, outcome


class Asking:
    """A loss that, at one step of an arm, lets another thread ask, and notes at which step the answer was there.

    The arm goes on from that step only once the request is on its way.
    """

    def __init__(self, at: int, ask: Callable[[esper.Session], Any]) -> None:
        self.at, self.ask = at, ask
        self.trial: Trial | None = None
        self.thread: threading.Thread | None = None
        self.outcome: list[Any] = []
        self.answered_at: int | None = None

    def __call__(self, model: Any, batch: Any) -> Any:
        if self.trial is not None and (position := self.trial.session.position).arm is not None:
            if self.thread is None and position.arm_step == self.at:
                self.thread, self.outcome = in_thread(lambda: self.ask(self.trial.session))
                while not self.trial.run.inbox.has_requests:
                    self.thread.join(0.001)
            elif self.answered_at is None and self.thread is not None and position.arm_step > self.at:
                self.thread.join(LONG_S)  # it has been answered: what it still does is its own
                self.answered_at = position.arm_step if self.outcome else None
        return toy.loss(model, batch)


ASKS: dict[str, tuple[Callable[[esper.Session], Any], str]] = {
    "germination": (lambda session: session.submit(Script({}).command("0")), "arms of a round are running"),
    "cancellation": (
        lambda session: session.submit(Command("", "all", State.CANCELLED)),
        "arms of a round are running",
    ),
    "germinate": (lambda session: session.germinate("0", "all"), "arms of a round are running"),
    "cancel": (lambda session: session.cancel("", "all"), "arms of a round are running"),
    "rollback": (lambda session: session.rollback(), "Arms are running"),
    "rechunk": (lambda session: session.rechunk("0", 1), "Arms are running"),
}


@pytest.mark.parametrize(
    ("name", "trial"),
    few(
        [(name, trial) for name in ASKS for trial in ("round", "live")],
        [("germination", "round"), ("cancellation", "round"), ("rollback", "live")],
    ),
)
def test_whatever_is_asked_while_an_arm_runs_is_answered_before_its_next_step(name, trial):
    ask, words = ASKS[name]
    asking = Asking(7, ask)
    layers = {"": 1, "0": 2}
    recipe = Recipe(growing(layers=layers, keep_looks=(0.95,)), policy=Script({1: [""]}, trial=trial))
    asking.trial = recipe.build(loss=asking)
    asking.trial.train()
    assert asking.thread is not None
    assert asking.answered_at == 8
    (answer,) = asking.outcome
    assert words in (answer.reason if isinstance(answer, Answer) else str(answer))
    assert asking.trial.digest() == recipe.build().train().digest()


def test_without_a_safe_point_between_its_steps_the_answer_would_come_when_the_arms_are_over(monkeypatch):
    """The control."""
    asking = Asking(7, lambda session: session.submit(Script({}).command("0")))
    monkeypatch.setattr("tests.runtime.test_inbox.LONG_S", 0.01)
    asking.trial = Recipe(growing(layers=["", "0"])).build(loss=asking)
    monkeypatch.setattr(asking.trial.run.inbox, "safe_point", lambda: None)
    asking.trial.train(5)
    assert asking.answered_at is None
    monkeypatch.undo()
    asking.trial.train(1)
    asking.thread.join()
    assert len(asking.outcome) == 1


def test_a_thread_that_asks_where_nobody_trains_takes_its_turn_itself():
    trial = Recipe(growing(layers=["", "0"]), policy=Script({})).build()
    thread, outcome = in_thread(lambda: trial.session.submit(Script({}).command("0")))
    thread.join(LONG_S)
    assert [answer.accepted for answer in outcome] == [True]
    assert trial.state("0") is State.GERMINATED


def test_an_error_in_a_step_leaves_nobody_waiting():
    trials: list[Trial] = []
    asked: list[Any] = []

    def loss(model, batch):
        if trials and trials[0].session.step_count == 3:
            asked.append(in_thread(lambda: trials[0].session.submit(Script({}).command("0"))))
            while not trials[0].run.inbox.has_requests:
                asked[0][0].join(0.001)
            raise ZeroDivisionError
        return toy.loss(model, batch)

    trials.append(Recipe(growing(layers=["", "0"]), policy=Script({})).build(loss=loss))
    with pytest.raises(ZeroDivisionError):
        trials[0].train()
    ((thread, outcome),) = asked
    thread.join(LONG_S)
    assert [answer.accepted for answer in outcome] == [True]


def test_what_was_asked_is_done_once_even_if_listeners_interrupt():
    done: list[int] = []

    def deliver() -> None:
        raise KeyboardInterrupt

    inbox = Inbox(deliver)
    with pytest.raises(KeyboardInterrupt):
        inbox.ask(lambda: done.append(1))
    inbox = Inbox(lambda: None)
    inbox.ask(lambda: done.append(2))
    assert done == [2]


commands = st.builds(
    Command,
    layer_id=st.sampled_from(["", "0", "nowhere"]),
    seed_id=st.sampled_from(["all", 0, 7]),
    target=st.sampled_from([State.GERMINATED, State.GERMINATED, State.CANCELLED, State.FOSSILIZED]),
    version=st.sampled_from([None, 0, 1]),
    blueprint=st.just("bottleneck_mlp"),
    settings=st.just({"hidden": 2}),
)


@settings(max_examples=15, phases=[Phase.generate], deadline=None)
@given(streams=st.lists(st.lists(commands, min_size=1, max_size=8), min_size=2, max_size=4))
def test_every_command_of_every_thread_gets_its_own_answer_once(streams):
    """Each thread asks everything twice, the second time with an id of its own; all of them train on meanwhile."""
    recipe = Recipe(growing(layers={"": 1, "0": 2}, round_fraction=0.05, max_failures=100), policy=Script({}))
    trial = recipe.build()
    streams = [
        [one for command in stream for one in (command, replace(command, id=f"again {command.id}"))]
        for stream in streams
    ]
    started = [in_thread(lambda stream=stream: [trial.session.submit(one) for one in stream]) for stream in streams]
    trial.train(1)
    for thread, _ in started:
        thread.join(LONG_S)
    answers = [outcome[0] for _, outcome in started]
    assert [[answer.command_id for answer in mine] for mine in answers] == [
        [command.id for command in stream] for stream in streams
    ]
    told = [event for event in trial.session.events if event["event"] in ("refused", "veto")]
    accepted = sum(answer.accepted for mine in answers for answer in mine)
    carried_out = [event for event in trial.events("transition") if event["who"] == "tamiyo"]
    assert (len(carried_out), len(told)) == (accepted, sum(map(len, streams)) - accepted)
    versions = [(event["layer_id"], event["seed_id"], event["version"]) for event in carried_out]
    assert len(set(versions)) == len(versions)  # of two for the same version one was refused


def test_nothing_can_be_asked_while_something_that_was_asked_is_done():
    inbox = Inbox(lambda: None)

    def request() -> None:
        for nested in (lambda: inbox.ask(lambda: None), lambda: inbox.turn().__enter__()):
            with pytest.raises(esper.TransitionError, match="in the middle of a step"):
                nested()

    inbox.ask(request)
    with inbox.turn():
        thread, outcome = in_thread(lambda: inbox.ask(request))
        while not inbox.has_requests:
            thread.join(0.001)
        inbox.safe_point()
    thread.join(LONG_S)
    assert outcome == [None]
