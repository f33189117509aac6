"""Runs as directories and buses tell them."""

import json
import time

import pytest

from esper.contracts.errors import BusUnavailableError
from esper.evaluation.rollout.directories import RunDirectories
from esper.evaluation.rollout.on_bus import RunsOnBus
from esper.oona.bus import Message
from esper.oona.codec import Codec
from esper.oona.environment import codec
from esper.oona.memory import MemoryBus, MemorySubscription
from esper.oona.messages import RunEvent
from tests.evaluation.rollout.world import FLAG, logs, write_run

NOW = time.time()


def append(path, *lines: bytes) -> None:
    with path.open("ab") as file:
        for line in lines:
            file.write(line)


def only(root) -> object:
    (found,) = RunDirectories(root).runs(FLAG, 0.0, set())
    return found


def test_a_directory_tells_cohort_kind_speed_loss_and_memory(tmp_path):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100)
    found = only(tmp_path)
    assert (found.run, found.is_on, found.is_finished, found.loss) == ("one", True, True, 0.2)
    assert (found.trouble, found.damage, found.kind) == (None, None, "Sequential of 682 parameters, 100 steps")
    assert {point.memory_bytes for point in found.points} == {10**9 + 10**6}
    assert found.points[1].time - found.points[0].time == pytest.approx(2.5, abs=1e-3)


def test_runs_of_before_known_ones_and_those_without_flags_are_left_out(tmp_path):
    for number in range(3):
        write_run(tmp_path / f"{number}", is_on=False, begin=NOW - 100 * number)
    path = tmp_path / "0" / "audit.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"flags"' not in line))
    (tmp_path / "no run").mkdir()
    assert [one.run for one in RunDirectories(tmp_path).runs(FLAG, NOW - 150, set())] == ["1"]
    assert RunDirectories(tmp_path).runs(FLAG, NOW - 150, {"1"}) == []


DAMAGE = {
    "a line that is none": ("metrics.jsonl", b"\x00\x00\x00\n"),
    "a field is missing": ("metrics.jsonl", b'{"event": "epoch", "time": 1.0, "epoch": 1}\n'),
    "a field of another type": ("audit.jsonl", b'{"event": "finished", "time": 1, "step": "x"}\n'),
    "no time": ("audit.jsonl", b'{"event": "note", "text": "hello"}\n'),
    "the future": ("audit.jsonl", json.dumps({"event": "note", "time": NOW + 9e6, "text": ""}).encode() + b"\n"),
    "the past": ("audit.jsonl", json.dumps({"event": "note", "time": NOW - 9e6, "text": ""}).encode() + b"\n"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_told(tmp_path, how):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100, ends=False)
    assert only(tmp_path).damage is None
    name, line = DAMAGE[how]
    append(tmp_path / "one" / name, line)
    assert only(tmp_path).damage is not None


def test_half_a_line_of_a_run_that_goes_on_is_no_damage(tmp_path):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100, ends=False)
    append(tmp_path / "one" / "metrics.jsonl", b'{"event": "epo')
    assert only(tmp_path).damage is None


def test_a_run_that_ends_without_numbers_is_damaged(tmp_path):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100)
    (tmp_path / "one" / "metrics.jsonl").write_text("")
    assert "tells no boundary" in only(tmp_path).damage


TROUBLE = {
    "rollback": {"to_step": 1, "reason": "it exploded", "who": "session", "lifecycles": []},
    "emergency": {"reason": "it exploded", "response": "cull"},
    "fault": {"layer_id": "0", "lifecycles": [1]},
}


@pytest.mark.parametrize("event", TROUBLE)
def test_trouble_is_told(tmp_path, event):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100, ends=False)
    line = {"event": event, "time": NOW, "step": 7, **TROUBLE[event]}
    append(tmp_path / "one" / "audit.jsonl", json.dumps(line).encode() + b"\n")
    assert only(tmp_path).trouble.startswith(f"{event} at step 7")


def test_a_loss_that_is_not_finite_is_trouble(tmp_path):
    write_run(tmp_path / "one", is_on=True, begin=NOW - 100)
    path = tmp_path / "one" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"val_loss": 1.2,', '"val_loss": null,'))
    assert only(tmp_path).trouble == "its loss at step 25 is not finite"


@pytest.fixture
def bus(request):
    """A bus, a run that tells it lines, and the source that hears them."""
    bus, coded = MemoryBus(request.node.name, 1000), Codec()

    def tell(*lines: dict) -> None:
        bus.publish_batch([coded.encode(RunEvent(run_id="r", line=line), "r") for line in lines])

    source = RunsOnBus(f"memory:{request.node.name}", {})
    yield bus, tell, source
    source.close()


def lines(*, ends: bool = False) -> list[dict]:
    told = logs("r", is_on=True, begin=NOW - 100, ends=ends)
    return sorted(told["audit.jsonl"] + told["metrics.jsonl"], key=lambda line: line["time"])


def test_a_bus_tells_the_same_as_the_directory(bus, tmp_path):
    _, tell, source = bus
    write_run(tmp_path / "r", is_on=True, begin=NOW - 100)
    tell(*lines(ends=True))
    (found,) = source.runs(FLAG, 0.0, set())
    assert found == only(tmp_path)
    assert source.runs(FLAG, 0.0, {"r"}) == source.runs("no_flag", 0.0, set()) == source.runs(FLAG, NOW, set()) == []


def test_a_bus_goes_on_telling(bus):
    _, tell, source = bus
    told = lines(ends=True)
    tell(*told[:10])
    assert not source.runs(FLAG, 0.0, set())[0].is_finished
    tell(*told[10:])
    assert source.runs(FLAG, 0.0, set())[0].is_finished


def test_after_an_outage_all_is_heard_again(bus, monkeypatch):
    _, tell, source = bus
    told = lines(ends=True)
    tell(*told[:10])
    assert source.runs(FLAG, 0.0, set())

    def away(*_: object, **__: object) -> None:
        raise BusUnavailableError("away")

    with monkeypatch.context() as outage:
        outage.setattr(MemorySubscription, "receive", away)
        with pytest.raises(BusUnavailableError):
            source.runs(FLAG, 0.0, set())
    tell(*told[10:])
    (found,) = source.runs(FLAG, 0.0, set())
    assert (len(found.points), found.is_finished) == (14, True)


def test_a_line_that_lacks_a_field_is_damage(bus):
    _, tell, source = bus
    tell(*lines(), {"event": "epoch", "time": NOW, "epoch": 1})
    assert source.runs(FLAG, 0.0, set())[0].damage == "a line of the kind 'epoch' lacks what it must have"


def test_noise_is_damage_of_the_run_that_it_names(bus):
    broker, tell, source = bus
    tell(*lines())
    broker.publish(Message(RunEvent.topic, "r", b"noise", {"kind": "RunEvent", "version": "1"}))
    assert source.runs(FLAG, 0.0, set())[0].damage.startswith("a message cannot be read")


def test_what_was_not_signed_by_a_run_says_nothing_of_it(request):
    """Else noise from anybody would end a rollout."""
    name, key = request.node.name, {"ESPER_BUS_KEYS": "a=" + "00" * 32}
    ours, source, bus = codec(key), RunsOnBus(f"memory:{name}", key), MemoryBus(name, 1000)
    bus.publish_batch([ours.encode(RunEvent(run_id="r", line=line), "r") for line in lines()])
    bus.publish(Codec().encode(RunEvent(run_id="r", line={"event": "epoch"}), "r"))
    (found,) = source.runs(FLAG, 0.0, set())
    assert (len(found.points), found.damage) == (14, None)
    source.close()
