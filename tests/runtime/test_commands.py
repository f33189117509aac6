"""Whatever commands come, in whatever order and from wherever: one answer each, and only listed transitions."""

import itertools
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from esper.contracts.commands import Answer, Command
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import TRANSITIONS, State
from esper.kasmina.host.wrapping import host_state_dict
from tests.runtime import toy
from tests.runtime.toy import Recipe, Script, Trial, growing

PLACES = {"": 1, "0": 2, "2": 3}
CONFIG = growing(
    layers=PLACES,
    round_fraction=0.07,
    gate_z=1e-6,
    ramp_fraction=0.02,
    embargo_epochs=0,
    quarantine_epochs=0,
    max_failures=100,
    keep_looks=(0.4, 0.6, 0.8),
)

sensible = st.builds(
    Command,
    layer_id=st.sampled_from(list(PLACES)),
    seed_id=st.sampled_from(["all", 0, 1, 2, (0, 1), (2, 0), (1,)]),
    target=st.sampled_from([State.GERMINATED, State.GERMINATED, State.CULLED, State.CANCELLED]),
    blueprint=st.just("bottleneck_mlp"),
    settings=st.just({"hidden": 2}),
    trial=st.sampled_from(["round", "live"]),
    also=st.sampled_from([{}, {}, {}, {"": "all"}, {"0": 1}, {"2": (2, 1)}]),
)
wild = st.builds(
    Command,
    layer_id=st.sampled_from([*PLACES, "2", "nowhere", "0.weight"]),
    seed_id=st.sampled_from(["all", 0, 1, 2, -1, 3, 10**9, (), (0, 0), (0, "all"), (0, 1, 9)]),
    target=st.sampled_from([*State, State.GERMINATED, State.GERMINATED, State.CULLED, State.CANCELLED]),
    version=st.sampled_from([None, None, None, 0, 1, 2, 7, (0, 0), (1, 0), ()]),
    blueprint=st.sampled_from(["bottleneck_mlp", "bottleneck_mlp", "placebo", "nonsense", None]),
    settings=st.sampled_from([{"hidden": 2}, {"hidden": 2}, {}, {"hidden": 0}, {"width": 3}]),
    strategy=st.sampled_from(["fixed_ramp", "grad_norm_gated", "nonsense"]),
    trial=st.sampled_from(["round", "live", "nonsense"]),
    also=st.sampled_from([{}, {}, {}, {"nowhere": 0}, {"2": (0, 7)}, {"0": ()}]),
)
by_hand = st.tuples(
    st.sampled_from(["germinate", "germinate", "cancel"]),
    st.sampled_from([*PLACES, "nowhere"]),
    st.sampled_from(["all", 0, 1, 2, 7]),
)

passing = st.sampled_from(["step", "steps", "steps", "epoch", "epoch", "epoch", "rollback"])


class Watch:
    """Checks every transition that a trial makes, where it is made."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.seen = trial, 0
        self.versions = self.current_versions()
        self.logged: dict[tuple[str, int], tuple[State, int]] = {}

    def current_versions(self) -> dict[str, list[int]]:
        return {layer_id: place.state.version.tolist() for layer_id, place in self.trial.run.places.items()}

    def check(self) -> None:
        """After any number of operations: all that was logged is listed and in order, and versions only rise."""
        events = self.trial.events("transition")
        for event in events[self.seen :]:
            source, target = State[event["source"]], State[event["target"]]
            assert target in TRANSITIONS[source], event
            if event["arm"] is None:
                self.check_order(event, source, target)
        self.seen = len(events)
        now = self.current_versions()
        for layer_id, versions in now.items():
            assert all(new >= old for new, old in zip(versions, self.versions[layer_id], strict=True))
        self.versions = now
        for (layer_id, seed), (state, transitions) in self.logged.items():
            place = self.trial.run.places[layer_id].state
            assert int(place.lifecycle[seed]) == state
            assert int(place.version[seed]) >= transitions

    def check_order(self, event: dict[str, Any], source: State, target: State) -> None:
        """Every transition of a seed begins where the one before ended; an adoption where its arm did."""
        seeds = range(PLACES[event["layer_id"]]) if event["seed_id"] == "all" else [event["seed_id"]]
        for seed in seeds:
            state, transitions = self.logged.get((event["layer_id"], seed), (State.DORMANT, 0))
            is_adoption = target is State.FINE_TUNING and state is State.GERMINATED
            assert source is state or is_adoption, event
            assert event["version"] > transitions, event
            self.logged[event["layer_id"], seed] = target, transitions + 1

    def check_identity(self) -> None:
        """Seeds that sleep, wait or train in isolation leave the host's forward as it is, to the bit."""
        trial = self.trial
        if any(place.is_growing for place in trial.run.places.values()):
            return
        bare = toy.host()
        bare.load_state_dict(host_state_dict(trial.model))
        trial.model.eval()
        assert torch.equal(trial.model(toy.DATA.held_x), bare.eval()(toy.DATA.held_x))
        trial.model.train()

    def states(self) -> dict[str, list[State]]:
        return {name: [State(s) for s in p.state.lifecycle.tolist()] for name, p in self.trial.run.places.items()}


def versions_of(trial: Trial, command: Command) -> list[int | None]:
    """Version of the seeds at each address of a command; None where there are none."""
    found: list[int | None] = []
    for layer_id, seed_id in command.addresses:
        count = PLACES.get(layer_id, 0)
        seeds = range(count) if seed_id == "all" else [seed_id]
        is_there = count and all(isinstance(seed, int) and 0 <= seed < count for seed in seeds)
        versions = trial.run.places[layer_id].state.version if is_there else None
        found.append(None if versions is None else max(int(versions[seed]) for seed in seeds))
    return found


def told_since(trial: Trial, count: int) -> list[dict[str, Any]]:
    return [event for event in trial.session.events[count:] if event["event"] == "transition"]


def ask(trial: Trial, watch: Watch, operation: Any) -> None:
    """One command, by whatever way: it gets one answer, is told, and changes nothing if it is refused."""
    before, told = (watch.states(), trial.digest()), len(trial.session.events)
    if isinstance(operation, Command):
        is_stale = operation.version is not None and [*operation.versions] != versions_of(trial, operation)
        answer = trial.session.submit(operation)
        assert isinstance(answer, Answer)
        assert answer.reason or answer.accepted
        assert not (is_stale and answer.accepted)
        is_accepted = answer.accepted
        if is_accepted:
            assert [*answer.versions] == versions_of(trial, operation)
            assert len(told_since(trial, told)) == len(operation.addresses)
    else:
        name, *arguments = (operation,) if isinstance(operation, str) else operation
        try:
            is_accepted = getattr(trial.session, name)(*arguments).accepted
        except (TransitionError, ConfigError):
            is_accepted = False
    if not is_accepted:
        assert (watch.states(), trial.digest()) == before
    if isinstance(operation, Command) or is_accepted:
        assert len(trial.session.events) > told


def drive(stream: list[Any]) -> None:
    trial = Recipe(CONFIG, policy=Script({})).build()
    watch, batch = Watch(trial), itertools.cycle(toy.batches(0))
    for operation in [*stream, "epoch", "step", "step"]:
        if operation in ("step", "steps"):
            for _ in range(1 if operation == "step" else 5):
                trial.session.step(next(batch))
                watch.check()
        elif operation == "epoch":
            trial.session.after_epoch()
            assert trial.events("epoch")[-1]["epoch"] == trial.session.epoch
        else:
            ask(trial, watch, operation)
        watch.check()
        watch.check_identity()
    begun = trial.run.books.lifecycles_begun
    trial.session.finish()
    watch.check()
    assert len(trial.session.field_reports) == begun
    assert {state for states in watch.states().values() for state in states} == {State.DORMANT}
    assert all(not place.arena.grafts for place in trial.run.places.values())


@settings(max_examples=15, phases=[Phase.generate])
@given(stream=st.lists(st.one_of(sensible, wild, by_hand, passing, passing), min_size=20, max_size=50))
def test_any_stream_of_commands_takes_only_listed_transitions_in_order_and_training_goes_on(stream):
    drive(stream)


CANCEL_TWICE = [
    Command("2", 1, State.GERMINATED, blueprint="bottleneck_mlp", settings={"hidden": 2}, trial="live"),
    "epoch",
    Command("2", 1, State.CANCELLED),
    Command("2", 1, State.CANCELLED),
]
STALE = [
    Command("2", 1, State.GERMINATED, blueprint="bottleneck_mlp", settings={"hidden": 2}),
    Command("2", 1, State.CANCELLED, version=0),
]


@pytest.mark.parametrize(("stream", "fault"), [(CANCEL_TWICE, "table"), (STALE, "version"), (STALE, "counter")])
def test_the_property_sees_a_table_or_a_version_that_does_not_hold(stream, fault, monkeypatch):
    """The control of the test above."""
    from esper.kasmina.places import lifecycle
    from esper.runtime.commands import seeds

    move = seeds.move

    def careless(places: Any, command: Command, *others: Any) -> list[Any]:
        moved = move(places, replace(command, version=None) if fault == "version" else command, *others)
        if fault == "counter":
            for layer_id, _ in command.addresses:
                places[layer_id].state.version.zero_()
        return moved

    drive(stream)
    monkeypatch.setattr(seeds, "move", careless)
    if fault == "table":
        monkeypatch.setattr(lifecycle, "check_transition", lambda *_: None)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        drive(stream)


def test_the_log_tells_the_state_that_the_seeds_were_really_in(monkeypatch):
    """What is logged as a transition's source is what the tensors held."""
    from esper.runtime.commands import seeds as module

    move, really = module.move, []

    def note(places: Any, command: Command, *others: Any) -> list[Any]:
        codes = [places[name].state.lifecycle[0 if one == "all" else one] for name, one in command.addresses]
        sources = [State(int(code)).name for code in codes]
        moved = move(places, command, *others)
        names = [layer_id for layer_id, _ in command.addresses]
        really.extend(zip(names, sources, [command.target.name] * len(names), strict=True))
        return moved

    monkeypatch.setattr(module, "move", note)
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
        thread.join()
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


def test_one_that_is_submitted_once_is_answered_again_and_changes_nothing(tmp_path):
    trial = Recipe(CONFIG, policy=Script({})).build()
    command = replace(Script({}).command(("2", 1)), version=0)
    first = trial.session.submit_once(command)
    assert trial.session.submit_once(command) == trial.session.answer_to(command.id) == first
    assert len(trial.events("transition")) == 1
    trial.session.save(tmp_path)
    other = Recipe(CONFIG, policy=Script({})).build()
    other.session.load(tmp_path)
    assert other.session.submit_once(command) == first
    assert not other.session.submit(command).accepted


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


@pytest.mark.parametrize("heard", ["a loser's end", "the adoption"])
def test_a_listener_may_take_back_a_winner_as_soon_as_it_hears_of_it(heard):
    """Books and tensors agree on what became of it, and nothing of it stays in the run."""
    target = State.CULLED if heard == "a loser's end" else State.FINE_TUNING
    answers: list[Answer] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "transition" and event["target"] == target.name and not answers:
            (winner,) = {"", "0"} - {event["layer_id"]} if target is State.CULLED else {event["layer_id"]}
            answers.append(trial.session.submit(Command(winner, "all", State.CANCELLED, "no, thanks")))

    config = growing(layers=["", "0"], gate_z=1e-4, keep_looks=(0.95,))
    trial = Recipe(config, policy=Script({1: ["", "0"]})).build(on_event=listen)
    trial.train(7)
    assert [answer.accepted for answer in answers] == [True]
    assert {report.outcome for report in trial.session.field_reports} == {"CULLED", "CANCELLED"}
    assert not trial.run.books.alive
    assert not any(place.arena.grafts for place in trial.run.places.values())
    assert trial.events("round_ended")[0]["reason"] == "beat the twin"  # the round was over before anyone was told
