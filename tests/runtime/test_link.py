"""A run on a bus: what happens goes out, commands come in, decisions come from elsewhere."""

import itertools
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from esper.contracts.errors import BusError, BusUnavailableError
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation
from esper.oona.bus import Bus, Delivery, Message
from esper.oona.codec import Codec
from esper.oona.messages import (
    CommandAck,
    FieldReportFiled,
    GerminationCommand,
    LayerHealthReport,
    RemovalCommand,
    RollbackCommand,
    RunHeartbeat,
    SeedTransition,
    values,
)
from esper.oona.url import open_bus
from esper.runtime.link.commands import ControlCommandHandler
from esper.runtime.link.publisher import TelemetryPublisher
from esper.runtime.link.remote import RemotePolicy
from esper.tamiyo.heuristic import HeuristicPolicy
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.policy import LearnedPolicy
from esper.tamiyo.learned.tokens import tokens
from esper.tamiyo.serving import Controller
from tests.runtime.toy import Recipe, Script, Trial, growing, timeless
from tests.tamiyo.learned.saying import saved
from tests.tamiyo.seen import NOW

_names = itertools.count()
CODEC = Codec()


@pytest.fixture
def url() -> str:
    return f"memory:link-{next(_names)}"


@pytest.fixture
def bus(url) -> Bus:
    return open_bus(url)


def heard(bus: Bus, *topics: str, group: str = "test") -> list:
    """All that a topic holds, decoded."""
    found = []
    for topic in topics:
        subscription = bus.subscribe(topic, f"{group}-{next(_names)}", "one", start="oldest")
        while got := subscription.receive(1000):
            found += [CODEC.decode(one.message) for one in got]
            subscription.ack(got)
    return found


def eventually(holds, within_s: float = 120.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


class TestWhatGoesOut:
    @pytest.fixture(scope="class")
    @staticmethod
    def told() -> tuple[Trial, list]:
        bus = open_bus(f"memory:link-{next(_names)}")
        publisher = TelemetryPublisher(lambda: bus, CODEC, "run")
        trial = Recipe(growing()).build()
        for line in trial.session.events:
            publisher(line)
        trial.session.subscribe(publisher)
        publisher.follow(trial.session)
        trial.train()
        trial.session.finish()
        assert publisher.close()
        assert (publisher.statistics.dropped, publisher.statistics.failures) == (0, 0)
        topics = ("kasmina.health.layer", "kasmina.lifecycle", "karn.field_report")
        return trial, heard(bus, *topics)

    def test_every_transition_with_all_that_the_log_says(self, told):
        trial, bodies = told
        moved = [body for body in bodies if isinstance(body, SeedTransition)]
        lines = trial.events("transition")
        assert len(moved) == len(lines) > 5
        for body, line in zip(moved, lines, strict=True):
            assert (body.run_id, body.seed_ids) == ("run", line["seed_id"])
            for name in ("step", "layer_id", "source", "target", "reason", "arm", "lifecycle", "gates"):
                assert getattr(body, name) == line[name]

    def test_every_field_report(self, told):
        trial, bodies = told
        reports = [body.report for body in bodies if isinstance(body, FieldReportFiled)]
        assert [report.to_dict() for report in reports] == [one.to_dict() for one in trial.session.field_reports]
        assert reports

    def test_what_seeds_have_sensed_one_message_a_place(self, told):
        trial, bodies = told
        health = [body for body in bodies if isinstance(body, LayerHealthReport)]
        assert {body.layer_id for body in health} == set(trial.run.places)
        for body in health:
            seeds = trial.run.places[body.layer_id].state.num_seeds
            assert len(body.states) == seeds
            assert all(len(values(column)) == seeds for column in body.columns.values())
        assert any(any(body.states) for body in health)

    def test_where_the_run_stands_and_that_it_ended(self, told):
        trial, bodies = told
        beats = [body for body in bodies if isinstance(body, RunHeartbeat)]
        assert [body.is_finished for body in beats][-1]
        assert (beats[-1].step, beats[-1].train_flops) == (trial.session.step_count, trial.session.train_flops)
        assert beats[-1].select_loss == pytest.approx(trial.run.books.select_losses[-1])


class Broken:
    """A bus whose broker is away for so many batches."""

    def __init__(self, bus: Bus, batches: int) -> None:
        self._bus, self._left = bus, batches

    def publish_batch(self, messages: list[Message]) -> None:
        if self._left:
            self._left -= 1
            raise BusUnavailableError("away")
        self._bus.publish_batch(messages)

    def close(self) -> None:
        pass


class Forgetful(Codec):
    """A codec whose store of large payloads is away for a while."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def encode(self, body, key, further=None):
        if self._left:
            self._left -= 1
            raise BusUnavailableError("the store is away")
        return super().encode(body, key, further)


class Forbidden:
    """A bus that lets nobody join."""

    def subscribe(self, *_, **__):
        raise BusError("refuses us")

    def close(self) -> None:
        pass


def test_a_bus_that_lets_nobody_hear_commands_is_told(bus):
    told: list[str] = []
    publisher = TelemetryPublisher(lambda: bus, CODEC, "run")
    handler = ControlCommandHandler(Forbidden, CODEC, "run", Recipe(growing()).build().session, publisher, told.append)
    assert eventually(lambda: told == ["No commands are heard any more: refuses us"], within_s=30)
    handler.close()
    publisher.close()


class TestABusThatIsAway:
    def test_nothing_is_lost_while_the_store_of_large_payloads_is_away(self, bus):
        publisher = TelemetryPublisher(lambda: bus, Forgetful(2), "run")
        acks = [
            CommandAck(run_id="run", command_id=str(number), accepted=True, reason="", versions=[], step=1)
            for number in range(5)
        ]
        for ack in acks:
            publisher.put(ack)
        assert eventually(lambda: publisher.statistics.published == 5, within_s=30)
        assert publisher.close()
        assert heard(bus, CommandAck.topic) == acks

    def test_telemetry_is_dropped_and_counted_and_all_else_waits(self, bus):
        publisher = TelemetryPublisher(lambda: Broken(bus, 10**9), CODEC, "run", bound=5)
        trial = Recipe(growing()).build()
        trial.session.subscribe(publisher)
        trial.train()
        trial.session.finish()
        sensed = len(trial.events("epoch"))
        assert eventually(lambda: publisher.statistics.failures > 0)
        assert publisher.close() is False
        assert sensed - 5 - 2 <= publisher.statistics.dropped <= sensed - 5
        assert publisher.statistics.published == 0
        assert heard(bus, "kasmina.lifecycle") == []

    def test_what_waited_goes_out_once_it_is_back(self, bus):
        publisher = TelemetryPublisher(lambda: Broken(bus, 2), CODEC, "run")
        trial = Recipe(growing()).build()
        trial.session.subscribe(publisher)
        trial.train()
        trial.session.finish()
        assert eventually(lambda: publisher.statistics.published > 0)
        assert publisher.close()
        moved = [body for body in heard(bus, "kasmina.lifecycle") if isinstance(body, SeedTransition)]
        assert len(moved) == len(trial.events("transition"))


def germination(id_: str, layer_id: str = "2", **settings) -> GerminationCommand:
    return GerminationCommand(
        run_id="run",
        command_id=id_,
        layer_id=layer_id,
        seed_ids="all",
        blueprint="bottleneck_mlp",
        settings={"hidden": 2},
        trial="live",
        **settings,
    )


class Linked:
    """A run that nobody decides for but the bus."""

    def __init__(self, bus: Bus, url: str, directory=None, epochs: int = 24) -> None:
        self.bus = bus
        config = growing(trial="live", layers=["", "2"])
        self.trial = Recipe(config, epochs=epochs, policy=Script({})).build(directory=directory)
        self.publisher = TelemetryPublisher(lambda: open_bus(url), CODEC, "run")
        self.handler: ControlCommandHandler | None = None
        self.url = url

    def listen(self) -> None:
        self.handler = ControlCommandHandler(
            lambda: open_bus(self.url), CODEC, "run", self.trial.session, self.publisher
        )

    def close(self) -> None:
        assert self.handler is not None
        self.handler.close()
        self.publisher.close()

    def acks(self) -> dict[str, list[CommandAck]]:
        found: dict[str, list[CommandAck]] = {}
        for body in heard(self.bus, "kasmina.control.ack"):
            found.setdefault(body.command_id, []).append(body)
        return found

    def train_until_answered(self, *ids: str) -> None:
        assert eventually(lambda: self.trial.train(1) is not None and set(ids) <= set(self.acks()))


@pytest.fixture
def linked(bus, url) -> Iterator[Linked]:
    one = Linked(bus, url, epochs=400)
    one.trial.train(1)
    one.listen()
    yield one
    one.close()


class TestCommands:
    def test_each_is_carried_out_between_steps_and_answered_once(self, linked):
        for body in (
            germination("a"),
            germination("b"),
            RemovalCommand(run_id="run", command_id="c", layer_id="nowhere", seed_ids=0),
        ):
            linked.bus.publish(CODEC.encode(body, "run"))
        linked.train_until_answered("a", "b", "c")
        acks = linked.acks()
        assert {id_: [one.accepted for one in answers] for id_, answers in acks.items()} == {
            "a": [True],
            "b": [False],
            "c": [False],
        }
        assert "nowhere" in acks["c"][0].reason
        assert linked.trial.state("2") is not State.DORMANT
        assert len([one for one in linked.trial.events("transition") if one["target"] == "GERMINATED"]) == 1

    def test_one_that_comes_again_changes_nothing(self, linked):
        for _ in range(3):
            linked.bus.publish(CODEC.encode(germination("a"), "run"))
        linked.train_until_answered("a")
        linked.trial.train(2)
        assert len([one for one in linked.trial.events("transition") if one["target"] == "GERMINATED"]) == 1
        linked.bus.publish(
            CODEC.encode(RemovalCommand(run_id="run", command_id="r", layer_id="2", seed_ids="all"), "run")
        )
        linked.train_until_answered("r")
        linked.bus.publish(CODEC.encode(germination("a"), "run"))
        assert eventually(lambda: linked.handler.statistics.repeated >= 1)
        assert len([one for one in linked.trial.events("transition") if one["target"] == "GERMINATED"]) == 1

    def test_those_to_other_runs_are_left_alone(self, linked):
        other = GerminationCommand(
            run_id="other", command_id="o", layer_id="2", seed_ids="all", blueprint="bottleneck_mlp", settings={}
        )
        linked.bus.publish_batch([CODEC.encode(other, "other"), CODEC.encode(germination("a"), "run")])
        linked.train_until_answered("a")
        assert set(linked.acks()) == {"a"}

    def test_what_cannot_be_read_goes_to_the_dead_letters(self, linked):
        topic = GerminationCommand.topic
        good = CODEC.encode(germination("a"), "run")
        bad = [Message(topic, "run", b"noise", good.headers), Message(topic, "run", good.body, {"kind": "Decision"})]
        linked.bus.publish_batch([*bad, good])
        linked.train_until_answered("a")
        letters = linked.bus.dead_letters(topic)
        assert [letter.message for letter in letters] == bad
        assert all(letter.reason for letter in letters)
        assert linked.handler.statistics.unreadable == 2

    def test_while_arms_run_one_waits_and_is_not_refused_again_and_again(self, bus, url):
        config = growing(layers=["", "2"], choice="best")
        trial = Recipe(config, epochs=120, policy=Script({1: [""]})).build()
        linked = Linked(bus, url)
        linked.trial = trial
        linked.listen()
        asked_in: list[str | None] = []

        def ask(line) -> None:
            if line["event"] == "transition" and line["arm"] is not None and not asked_in:
                asked_in.append(line["arm"])
                bus.publish(CODEC.encode(germination("late"), "run"))
                time.sleep(0.2)  # it has heard it by now

        trial.session.subscribe(ask)
        linked.train_until_answered("late")
        assert asked_in
        assert [one.accepted for one in linked.acks()["late"]] == [True]
        assert len(trial.events("refused")) <= 1
        linked.close()

    def test_a_rollback_that_cannot_be_is_refused_once_and_holds_nothing_up(self, bus, url):
        linked = Linked(bus, url)
        linked.listen()  # nothing was trained: there is no state to go back to
        bus.publish(CODEC.encode(RollbackCommand(run_id="run", command_id="back"), "run"))
        bus.publish(CODEC.encode(germination("a"), "run"))
        assert eventually(lambda: {"back", "a"} <= set(linked.acks()), within_s=30)
        assert [one.accepted for one in linked.acks()["back"]] == [False]
        linked.close()

    def test_a_rollback_is_done_once(self, linked):
        linked.bus.publish(CODEC.encode(RollbackCommand(run_id="run", command_id="back"), "run"))
        linked.train_until_answered("back")
        answer = linked.trial.session.rollback("back")
        assert answer.accepted == linked.acks()["back"][0].accepted
        assert len(linked.trial.events("rollback")) <= 1


def held(bus: Bus) -> list[Delivery]:
    """Commands whose message the run has not acked: those that come to another consumer of its group in time."""
    group = bus._store.topics[GerminationCommand.topic].groups["run"]
    return [one.delivery for one in group.held.values()]


class TestWhatACheckpointKnows:
    """The answer is acked on the bus once a restart would know it."""

    def test_a_command_is_held_until_then(self, bus, url, tmp_path):
        linked = Linked(bus, url, tmp_path, epochs=400)
        linked.trial.train(1)
        linked.listen()
        bus.publish(CODEC.encode(germination("a"), "run"))
        assert eventually(lambda: "a" in linked.acks())  # nobody trains: it is carried out at once
        assert len(held(bus)) == 1
        linked.trial.train(1)
        assert eventually(lambda: held(bus) == [])
        linked.close()

    @pytest.mark.parametrize("is_saved", [False, True])
    def test_after_a_restart_it_is_carried_out_if_and_only_if_the_checkpoint_does_not_hold_it(
        self, bus, url, tmp_path, is_saved
    ):
        first = Linked(bus, url, tmp_path, epochs=24)
        first.trial.train(2)
        first.listen()
        bus.publish(CODEC.encode(germination("a"), "run"))
        assert eventually(lambda: "a" in first.acks())
        if is_saved:
            first.trial.session.save(tmp_path / "checkpoints")
        first.handler.close()  # as a kill would: what it held is held still, unless it was acked
        bus.publish(CODEC.encode(germination("a"), "run"))  # redelivered, as brokers do
        second = Linked(bus, url, tmp_path, epochs=24)
        second.trial.session.load(tmp_path / "checkpoints")
        expected = State.GERMINATED if is_saved else State.DORMANT
        assert second.trial.state("2") is expected
        second.listen()
        assert eventually(lambda: second.trial.state("2") is State.GERMINATED)
        assert eventually(lambda: sum(map(len, second.acks().values())) >= 2)
        assert {one.accepted for one in second.acks()["a"]} == {True}
        germinated = [one for one in second.trial.events("transition") if one["target"] == "GERMINATED"]
        assert len(germinated) == 1
        second.close()
        first.publisher.close()


class TestAControllerElsewhere:
    @staticmethod
    def grown(policy) -> Trial:
        trial = Recipe(growing(), policy=policy).build().train()
        trial.session.finish()
        return trial

    def remote(self, url: str, **options) -> RemotePolicy:
        return RemotePolicy(lambda: open_bus(url), CODEC, "run", growing(), **options)

    @pytest.fixture
    def controller(self, url) -> Iterator[Controller]:
        ending = threading.Event()
        one = Controller(open_bus(url), CODEC, "heuristic", "one")
        thread = threading.Thread(target=one.serve, args=[ending])
        thread.start()
        yield one
        ending.set()
        thread.join()

    @pytest.mark.usefixtures("controller")
    def test_a_run_is_the_one_that_it_would_be_with_its_own(self, url):
        near, far = self.grown(HeuristicPolicy(growing())), self.grown(self.remote(url, timeout_s=60.0))
        assert near.digest() == far.digest()
        assert timeless(near.session.events) == timeless(far.session.events)
        assert near.session.field_reports

    def test_so_it_is_with_one_that_has_learned(self, url, tmp_path):
        known = tokens(NOW, growing(), legal_actions(NOW, growing()))
        path = saved(tmp_path / "weights.safetensors", known, reach=10.0, adopt=5.0, adopted=0.1)
        near = self.grown(LearnedPolicy(growing(), path))
        ending = threading.Event()
        thread = threading.Thread(
            target=Controller(open_bus(url), CODEC, f"learned:{path}", "one").serve, args=[ending]
        )
        thread.start()
        far = self.grown(self.remote(url, timeout_s=60.0))
        ending.set()
        thread.join()
        assert near.digest() == far.digest()
        assert timeless(near.session.events) == timeless(far.session.events)
        (germinated, *_) = [one for one in near.events("transition") if one["target"] == "GERMINATED"]
        assert germinated["reason"].startswith("learned: ")

    def test_without_one_the_run_goes_on_and_says_so_once(self, url):
        told: list[str] = []
        policy = self.remote(url, timeout_s=0.01, tell=told.append)
        trial = self.grown(policy)
        assert trial.session.field_reports == []
        assert policy.statistics.decisions_missed == len(trial.events("epoch"))
        assert ["No decision came within 0.01 s" in one for one in told] == [True]

    def test_it_is_said_again_once_a_decision_has_come(self, url):
        seen: list[Observation] = []
        self.grown(SimpleNamespace(decide=lambda observation: seen.append(observation) or []))
        told: list[str] = []
        policy = self.remote(url, timeout_s=0.5, tell=told.append)
        policy.decide(seen[0])
        ending = threading.Event()
        thread = threading.Thread(target=Controller(open_bus(url), CODEC, "heuristic", "one").serve, args=[ending])
        thread.start()
        while not policy.statistics.decisions:
            policy.decide(seen[0])
        ending.set()
        thread.join()
        assert len(told) == 1
        policy.decide(seen[0])
        assert len(told) == 2

    def test_or_with_the_policy_that_stands_in(self, url):
        stands_in = self.remote(url, timeout_s=0.01, otherwise=HeuristicPolicy(growing()))
        assert self.grown(stands_in).digest() == self.grown(HeuristicPolicy(growing())).digest()
