"""What the exporter makes of what it hears."""

import itertools
import threading
import time

import pytest

from esper.contracts.errors import BusUnavailableError
from esper.observability.metrics import over_bus
from esper.observability.metrics.over_bus import FORGOTTEN_AFTER_S, Runs
from esper.observability.metrics.series import SILENT_S
from esper.oona.bus import Message
from esper.oona.codec import Codec
from esper.oona.messages import GerminationCommand, RunEvent, RunHeartbeat
from esper.oona.url import open_bus
from tests.prometheus import eventually

_names = itertools.count()
CODEC = Codec()


@pytest.fixture
def url() -> str:
    return f"memory:exporter-{next(_names)}"


def beat(run: str, seconds_ago: float, step: int = 5, *, is_stopped: bool = False) -> RunHeartbeat:
    return RunHeartbeat(
        run_id=run,
        step=step,
        planned_steps=10,
        epoch=1,
        arm=None,
        train_loss=None,
        select_loss=None,
        train_flops=0,
        is_finished=False,
        time=time.time() - seconds_ago,
        is_stopped=is_stopped,
    )


def finished(run: str, seconds_ago: float) -> RunEvent:
    line = {"event": "finished", "time": time.time() - seconds_ago, "step": 10}
    return RunEvent(run_id=run, line=line | {"select_loss": 0.5, "select_metric": None, "train_flops": 5})


def heard(url: str, *bodies: RunHeartbeat | RunEvent) -> dict[tuple[str, ...], float]:
    """Samples of an exporter that came after these."""
    bus = open_bus(url)
    bus.publish_batch([CODEC.encode(body, body.run_id) for body in bodies])
    runs, ending = Runs(lambda: open_bus(url), CODEC), threading.Event()
    thread = threading.Thread(target=runs.follow, args=(ending,), daemon=True)
    thread.start()
    assert eventually(lambda: any(one.name == "esper_topic_messages" for one in runs.samples()), within_s=20)
    time.sleep(1.2)  # twice as long as it waits for a message
    found = {(one.name, *one.labels): one.value for one in runs.samples()}
    ending.set()
    thread.join()
    assert not any(topic.groups for topic in bus._store.topics.values())  # it leaves nothing behind
    return found


def test_a_run_that_was_stopped_on_purpose_is_not_dead_until_it_goes_on(url):
    """Lines of before come by another topic, and may be read after the heartbeat."""
    note = {"event": "note", "step": 1, "text": "a sentence"}
    before = RunEvent(run_id="stopped", line=note | {"time": time.time() - 310})
    after = RunEvent(run_id="went on", line=note | {"time": time.time() - 290})
    stopped, went_on = (beat(run, 300, is_stopped=True) for run in ("stopped", "went on"))
    found = heard(url, stopped, before, went_on, after, beat("dead", 300))
    told = {name: found["esper_run_stopped", name] for name in ("stopped", "went on", "dead")}
    assert told == {"stopped": 1, "went on": 0, "dead": 0}
    assert [found["esper_runs", name] for name in ("running", "finished", "stopped", "dead")] == [0, 0, 1, 2]


def test_of_what_a_topic_holds_nothing_is_told_before_all_of_it_is_read(url):
    """A counter that is read half would seem to rise, and a run whose end is not read yet to be dead."""
    bus = open_bus(url)
    note = {"event": "note", "time": time.time(), "step": 1, "text": "a sentence"}
    bodies = [RunEvent(run_id="a", line=note)] * 1200
    bus.publish_batch([CODEC.encode(body, body.run_id) for body in (*bodies, finished("a", 0))])
    runs = Runs(lambda: open_bus(url), CODEC)
    subscriptions = [
        bus.subscribe(topic, "test", "one", start="oldest") for topic in ("run.event", "kasmina.lifecycle")
    ]
    told = []
    for _ in range(3):
        runs._hearing._hear(subscriptions)
        told.append([one.value for one in runs.samples() if one.name in ("esper_run_finished", "esper_events_total")])
    assert told[:2] == [[], []]
    assert sum(told[2]) == 1 + 1201


def test_runs_live_die_end_and_are_forgotten(url):
    found = heard(
        url,
        beat("lives", 1),
        beat("dead", SILENT_S + 5),
        beat("long dead", FORGOTTEN_AFTER_S + 5),
        finished("done", 100),
        finished("long done", FORGOTTEN_AFTER_S + 5),
    )
    assert {key[1]: value for key, value in found.items() if key[0] == "esper_run_up"} == {
        "lives": 1.0,
        "dead": 0.0,
        "done": 0.0,
    }
    assert [found["esper_runs", name] for name in ("running", "finished", "dead")] == [1, 1, 1]
    assert found["esper_topic_messages", "run.event"] == 2


def test_heartbeats_that_come_late_turn_nothing_back(url):
    found = heard(url, beat("run", 1, step=9), beat("run", 10, step=3))
    assert found["esper_step", "run"] == 9


def test_what_cannot_be_read_is_counted_and_no_dead_letter(url):
    bus = open_bus(url)
    bus.publish(Message("run.event", "run", b"noise", {"kind": "RunEvent"}))
    bus.publish(Message(GerminationCommand.topic, "run", b"noise"))
    rejecting = bus.subscribe(GerminationCommand.topic, "other", "one", start="oldest")
    rejecting.reject(rejecting.receive()[0], "noise")
    bus.forget(GerminationCommand.topic, "other")
    lines: list[dict[str, object]] = [{"event": "epoch"}, {"event": ["note"]}, {"event": "note", "time": "soon"}]
    found = heard(url, *(RunEvent(run_id="run", line=line) for line in lines), beat("run", 1))
    assert found["esper_exporter_unreadable_total",] == 4
    assert found["esper_topic_dead_letters", "run.event"] == 0
    assert found["esper_topic_dead_letters", GerminationCommand.topic] == 1
    assert found["esper_exporter_bus_up",] == 1


def test_lines_of_a_run_that_tells_nothing_else_are_counted_too(url):
    assert heard(url, RunEvent(run_id="odd", line={"event": 3}))["esper_exporter_unreadable_total",] == 1


def test_the_number_of_runs_is_bounded(url, monkeypatch):
    monkeypatch.setattr(over_bus, "MAX_KNOWN", 3)
    found = heard(url, *(beat(f"run{number}", 20 - number) for number in range(6)))
    assert {key[1] for key in found if key[0] == "esper_step"} == {"run3", "run4", "run5"}


def test_a_broker_that_is_away_is_told_once_and_asked_again(url):
    away, told = threading.Event(), []
    away.set()

    def connect():
        if away.is_set():
            raise BusUnavailableError("away")
        return open_bus(url)

    runs, ending = Runs(connect, CODEC, told.append), threading.Event()

    def is_up() -> float:
        return next(one.value for one in runs.samples() if one.name == "esper_exporter_bus_up")

    thread = threading.Thread(target=runs.follow, args=(ending,), daemon=True)
    thread.start()
    time.sleep(0.2)
    assert is_up() == 0
    away.clear()
    assert eventually(lambda: is_up() == 1)
    ending.set()
    thread.join()
    assert told == []  # it has never been up before
