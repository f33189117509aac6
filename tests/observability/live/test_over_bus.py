"""Runs that a bus tells make the records that their directories hold, and take commands that are sent from here."""

import threading
import time
from functools import partial

import numpy as np
import pytest

from esper.contracts.errors import BusUnavailableError, ConfigError
from esper.observability.lattice import lengthened
from esper.observability.live.over_bus import BusRuns
from esper.observability.record import read
from esper.oona.codec import Codec
from esper.oona.messages import CommandAck, GerminationCommand, RemovalCommand, RollbackCommand, RunEvent
from esper.oona.url import open_bus
from esper.runtime.link.lines import bodies
from tests.observability.recorded import write_synthetic
from tests.observability.unpacking import unpack
from tests.prometheus import eventually

RUN = "run-1"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    return read(write_synthetic(tmp_path_factory.mktemp("told"), seeds=100, boundaries=12))


@pytest.fixture
def url(tmp_path):
    return f"memory:{tmp_path.name}"


@pytest.fixture
def runs(url):
    """All runs of a bus, which a thread reads."""
    found, ending = BusRuns(partial(open_bus, url), Codec(), print), threading.Event()
    thread = threading.Thread(target=found.follow, args=(ending,))
    thread.start()
    yield found
    ending.set()
    thread.join()


def tell(url, record, *, times=1):
    """As a run's publisher does, ``times`` in all."""
    bus, codec = open_bus(url), Codec()
    lines = [event for _, event in (*record.audit, *record.epochs, *record.telemetry) if event["event"] != "emergency"]
    for line in sorted(lines, key=lambda event: event.get("step", 0)) * times:
        bus.publish_batch([codec.encode(body, RUN) for body in bodies({"time": time.time(), **line}, RUN)])
    bus.close()


@pytest.mark.parametrize("times", [1, 2])
def test_a_bus_tells_the_record_once_however_often_it_comes(url, runs, record, times):
    """A run that goes on from a checkpoint tells some lines again."""
    tell(url, record, times=times)
    assert eventually(lambda: runs.look(()) and len(runs.look(())[0].record.telemetry) == 12)
    (run,) = runs.look(())
    told = run.record
    assert [event["step"] for _, event in told.epochs] == [event["step"] for _, event in record.epochs]
    kinds = [event["event"] for _, event in told.audit]
    assert sorted(kinds) == sorted(event["event"] for _, event in record.audit if event["event"] != "emergency")
    assert told.faults == []
    for mine, theirs in zip(unpack(lengthened(told, None)), unpack(lengthened(record, None)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0.11)  # float32 may round to the neighbour of two digits


def test_a_command_goes_to_the_run_and_its_answer_is_known(url, runs, record):
    tell(url, record.__class__(record.directory, audit=record.audit[:1]))
    assert eventually(lambda: runs.look(()))
    bus, codec = open_bus(url), Codec()
    heard = bus.subscribe(RollbackCommand.topic, "test", "one", start="oldest")
    germinate = {"run_id": RUN, "layer_id": "a", "seed_ids": 3, "blueprint": "affine", "settings": {}}
    ids = [
        runs.send("germinate", germinate),
        runs.send("cancel", {"run_id": RUN, "layer_id": "a", "seed_ids": "all"}),
        runs.send("rollback", {"run_id": RUN, "reason": "why not"}),
    ]
    asked = [codec.decode(one.message) for one in heard.receive(10, timeout_s=5.0)]
    assert [type(one) for one in asked] == [GerminationCommand, RemovalCommand, RollbackCommand]
    assert [one.command_id for one in asked] == ids
    assert {one.who for one in asked} == {"watch"}
    said = {"run_id": RUN, "versions": [], "step": 7}
    for id_, accepted in ((ids[0], True), (ids[2], False)):
        bus.publish(codec.encode(CommandAck(command_id=id_, accepted=accepted, reason="no", **said), RUN))
    assert eventually(lambda: runs.sent[RUN][2].is_accepted is False)
    assert [one.is_accepted for one in runs.sent[RUN]] == [True, None, False]
    bus.close()


@pytest.mark.parametrize(
    ("action", "fields", "message"),
    [
        ("rolback", {}, "Did you mean 'rollback'"),
        ("rollback", {"run_id": 3}, "This is no command rollback"),
        ("rollback", {"run_id": "elsewhere"}, "'elsewhere' is not on this bus"),
        ("rollback", {"run_id": RUN, "more": 1}, "This is no command rollback"),
        ("rollback", {"run_id": RUN}, "is over"),
        ("germinate", {"run_id": RUN, "layer_id": "a", "seed_ids": -1, "blueprint": "b", "settings": {}}, "no command"),
    ],
)
def test_what_is_no_command_is_refused(url, runs, record, action, fields, message):
    tell(url, record.__class__(record.directory, audit=[record.audit[0], *record.of("finished")]))
    assert eventually(lambda: runs.look(()) and runs.look(())[0].state.is_finished)
    with pytest.raises(ConfigError, match=message):
        runs.send(action, fields)
    assert runs.sent == {}


NOTE = RunEvent(run_id=RUN, line={"event": "note", "time": 1.0, "step": 1, "text": "a sentence"})


def test_a_command_that_the_bus_does_not_take_was_not_sent():
    def away():
        raise BusUnavailableError("away")

    runs = BusRuns(away, Codec(), print)
    runs._take([NOTE])
    with pytest.raises(BusUnavailableError, match="away"):
        runs.send("rollback", {"run_id": RUN})
    assert runs.sent == {RUN: []}


def test_an_answer_of_a_run_that_was_forgotten_meanwhile_is_taken(url, monkeypatch):
    monkeypatch.setattr("esper.observability.live.over_bus.MAX_KNOWN", 0)
    runs = BusRuns(partial(open_bus, url), Codec(), print)
    runs._take([NOTE])
    id_ = runs.send("rollback", {"run_id": RUN})
    runs.look(())
    runs._take([CommandAck(command_id=id_, run_id=RUN, accepted=True, reason="", versions=[], step=7)])
    assert runs.sent[RUN][0].is_accepted
