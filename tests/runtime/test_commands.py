"""Whatever commands come, in whatever order and from wherever: one answer each, and only listed transitions."""

import itertools
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts.commands import Answer, Command
from esper.contracts.lifecycle import TRANSITIONS, State
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

PLACES = {"": 1, "0": 2, "2": 3}
CONFIG = growing(
    layers=PLACES, round_fraction=0.07, gate_z=1e-6, ramp_fraction=0.02, embargo_epochs=0, keep_looks=(0.4, 0.6, 0.8)
)

sensible = st.builds(
    Command,
    layer_id=st.sampled_from(list(PLACES)),
    seed_id=st.sampled_from(["all", 0, 1, 2]),
    target=st.sampled_from([State.GERMINATED, State.GERMINATED, State.CULLED, State.CANCELLED]),
    blueprint=st.just("bottleneck_mlp"),
    settings=st.just({"hidden": 2}),
)
wild = st.builds(
    Command,
    layer_id=st.sampled_from([*PLACES, "2", "nowhere", "0.weight"]),
    seed_id=st.sampled_from(["all", 0, 1, 2, -1, 3, 10**9]),
    target=st.sampled_from([*State, State.GERMINATED, State.GERMINATED, State.CULLED, State.CANCELLED]),
    version=st.sampled_from([None, None, None, 0, 1, 2, 7]),
    blueprint=st.sampled_from(["bottleneck_mlp", "bottleneck_mlp", "placebo", "nonsense", None]),
    settings=st.sampled_from([{"hidden": 2}, {"hidden": 2}, {}, {"hidden": 0}, {"width": 3}]),
    strategy=st.sampled_from(["fixed_ramp", "fixed_ramp", "nonsense"]),
)

passing = st.sampled_from(["step", "steps", "steps", "epoch", "epoch"])


class Watch:
    """Checks every transition that a trial makes, where it is made."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.seen = trial, 0
        self.versions = self.current_versions()

    def current_versions(self) -> dict[str, list[int]]:
        return {layer_id: place.state.version.tolist() for layer_id, place in self.trial.run.places.items()}

    def check(self) -> None:
        """After any number of operations: all that was logged is listed, and versions only rise."""
        events = self.trial.events("transition")
        for event in events[self.seen :]:
            assert State[event["target"]] in TRANSITIONS[State[event["source"]]], event
        self.seen = len(events)
        now = self.current_versions()
        for layer_id, versions in now.items():
            assert all(new >= old for new, old in zip(versions, self.versions[layer_id], strict=True))
        self.versions = now

    def states(self) -> dict[str, list[State]]:
        return {name: [State(s) for s in p.state.lifecycle.tolist()] for name, p in self.trial.run.places.items()}


@settings(max_examples=40)
@given(stream=st.lists(st.one_of(sensible, wild, passing), min_size=20, max_size=50))
def test_any_stream_of_commands_takes_only_listed_transitions_and_training_goes_on(stream):
    trial = Recipe(CONFIG, policy=Script({})).build()
    watch, batch = Watch(trial), itertools.cycle(toy.batches(0))
    for operation in [*stream, "epoch", "step", "step"]:
        if operation in ("step", "steps"):
            for _ in range(1 if operation == "step" else 5):
                trial.session.step(next(batch))
                watch.check()
        elif operation == "epoch":
            trial.session.after_epoch()
        else:
            before = watch.states(), trial.digest(), len(trial.session.events)
            answer = trial.session.submit(operation)
            assert isinstance(answer, Answer)
            assert answer.reason or answer.accepted
            if not answer.accepted:
                assert (watch.states(), trial.digest()) == before[:2]
            assert len(trial.session.events) > before[2]
        watch.check()
        assert torch.isfinite(trial.model(toy.DATA.held_x)).all()
    begun = trial.run.books.lifecycles_begun
    trial.session.finish()
    watch.check()
    assert len(trial.session.field_reports) == begun
    assert {state for states in watch.states().values() for state in states} == {State.DORMANT}
    assert all(not place.arena.grafts for place in trial.run.places.values())


def test_the_log_tells_the_state_that_the_seeds_were_really_in(monkeypatch):
    """What is logged as a transition's source is what the tensors held."""
    from esper.runtime import run as module

    transition, really = module.transition, []

    def note(place: Any, command: Command, **options: Any) -> int:
        first = place.state.lifecycle[0 if command.seed_id == "all" else command.seed_id]
        source = State(int(first)).name
        version = transition(place, command, **options)
        really.append((command.layer_id, source, command.target.name))
        return version

    monkeypatch.setattr(module, "transition", note)
    trial = Recipe(CONFIG, policy=Script({1: ["", ("2", 0)], 3: ["0", ("2", 1)], 6: [("2", 2)]})).build()
    trial.train()
    trial.session.finish()
    logged = [(event["layer_id"], event["source"], event["target"]) for event in trial.events("transition")]
    assert logged == really
    assert len(logged) > 20


def test_commands_from_other_threads_get_one_answer_each_while_training_goes_on():
    trial = Recipe(CONFIG, policy=Script({1: ["", "2"]})).build()
    watch = Watch(trial)
    targets = [State.GERMINATED, State.CULLED, State.CANCELLED, State.FOSSILIZED, State.DORMANT]
    asked = [
        replace(Script({}, hidden=2).command((layer_id, seed_id)), target=target, version=version)
        for layer_id, target, seed_id, version in itertools.product(
            ["", "0", "2", "nowhere"], targets, [0, 1, 9], [None, 1]
        )
    ]
    answers: list[list[Answer]] = [[] for _ in range(3)]
    errors: list[BaseException] = []

    def ask(mine: list[Answer]) -> None:
        try:
            mine.extend(trial.session.submit(command) for command in asked)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in answers]
    for thread in threads:
        thread.start()
    trial.train(4)
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    assert [len(mine) for mine in answers] == [len(asked)] * 3
    trial.train()
    trial.session.finish()
    watch.check()
    assert len(trial.session.field_reports) == trial.run.books.lifecycles_begun
    accepted = sum(answer.accepted for mine in answers for answer in mine)
    carried_out = [event for event in trial.events("transition") if event["who"] == "tamiyo"]
    assert len(carried_out) - accepted <= 2  # those of the policy


def test_of_two_equal_commands_for_a_version_one_is_carried_out():
    trial = Recipe(CONFIG, policy=Script({})).build()
    command = replace(Script({}).command(("2", 1)), version=0)
    first, second = trial.session.submit(command), trial.session.submit(command)
    assert (first.accepted, first.version) == (True, 1)
    assert not second.accepted
    assert "version 1; the command was for version 0" in second.reason


@pytest.mark.parametrize("target", [s for s in State if s not in (State.GERMINATED, State.CULLED, State.CANCELLED)])
def test_what_follows_from_measurement_or_time_cannot_be_asked_for(target):
    """Neither promotions, nor the end of an embargo, nor a rollback."""
    trial = Recipe(growing(keep_looks=(0.9,))).build().train(6)
    before = trial.digest()
    answer = trial.session.submit(Command("", "all", target))
    assert not answer.accepted
    assert "What can: GERMINATED, CULLED, CANCELLED" in answer.reason
    assert trial.digest() == before


@pytest.mark.parametrize("seed_id", [np.int64(0), 0.0, "first", None])
def test_a_number_or_name_of_another_kind_is_refused_and_logged(seed_id):
    trial = Recipe().build()
    assert not trial.session.submit(Command("", seed_id, State.GERMINATED, blueprint="bottleneck_mlp")).accepted
    assert not trial.session.submit(Command("", "all", 1, blueprint="bottleneck_mlp")).accepted  # a code is no State
    assert len(trial.events("refused")) == 2


def test_a_refusal_leaves_no_trace_in_the_lifecycles_record():
    trial = Recipe().build().train_until(lambda trial: trial.session.epoch == 2)
    (one,) = trial.run.books.alive.values()
    before = dict(one.gates)
    for target in State:
        if target is not State.CANCELLED and target is not State.CULLED:
            assert not trial.session.submit(Command("", "all", target)).accepted
    assert one.gates == before
    assert [event["asked"] for event in trial.events("refused")] == [""] * 9


def test_a_listener_cannot_reach_into_a_running_arm():
    """Its command would be lost when the run comes back from the arm."""
    answers = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "transition" and event["arm"] is not None:
            answers.append(trial.session.submit(Command("", "all", State.CANCELLED)))

    trial = Recipe().build(on_event=listen)
    trial.train()
    assert len(answers) == 4
    assert all("arms of a round are running" in answer.reason for answer in answers)
    assert trial.events("round_ended")[0]["adopted"] is not None
