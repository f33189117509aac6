"""Runs as directories and buses tell them."""

import json
import time

import pytest

from esper.evaluation.rollout.directories import RunDirectories
from esper.evaluation.rollout.on_bus import RunsOnBus
from esper.oona.bus import Message
from esper.oona.codec import Codec
from esper.oona.environment import codec
from esper.oona.memory import MemoryBus
from esper.oona.messages import EmergencyAlert, RunHeartbeat
from tests.evaluation.rollout.world import FLAG, write_run

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
    assert {point.memory_bytes for point in found.points} == {10**9}
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


def beat(step: int, **fields) -> RunHeartbeat:
    known = {"planned_steps": 500, "epoch": 1, "arm": None, "train_loss": 1.0, "select_loss": 0.4, "train_flops": 9}
    about = {"is_finished": False, "memory_bytes": 10**9, "flags": {FLAG: True}, "time": NOW - 500 + step / 10}
    return RunHeartbeat(run_id="r", step=step, **(known | about | fields))


@pytest.fixture
def bus(request):
    bus, codec = MemoryBus(request.node.name, 1000), Codec()

    def publish(*bodies) -> None:
        bus.publish_batch([codec.encode(body, "r") for body in bodies])

    source = RunsOnBus(f"memory:{request.node.name}", {})
    yield bus, publish, source
    source.close()


def test_a_bus_tells_the_same(bus):
    _, publish, source = bus
    publish(*(beat(100 * number) for number in range(5)))
    (found,) = source.runs(FLAG, 0.0, set())
    assert (found.run, found.is_on, found.is_finished, len(found.points)) == ("r", True, False, 5)
    publish(beat(500, is_finished=True))
    (found,) = source.runs(FLAG, 0.0, set())
    assert (found.is_finished, found.loss, found.trouble, found.damage) == (True, 0.4, None, None)
    assert source.runs(FLAG, 0.0, {"r"}) == source.runs("extended_lifecycle", 0.0, set()) == []


def test_alerts_and_what_cannot_be_read_are_told(bus):
    broker, publish, source = bus
    alert = {"reason": "it exploded", "response": "rollback", "select_loss": 9.0, "good_select_loss": 1.0}
    publish(beat(100), EmergencyAlert(run_id="r", step=120, lifecycle=None, layer_id=None, **alert))
    broker.publish(Message(RunHeartbeat.topic, "r", b"noise", {"kind": "RunHeartbeat", "version": "2"}))
    (found,) = source.runs(FLAG, 0.0, set())
    assert found.trouble == "rollback at step 120: it exploded"
    assert found.damage.startswith("a message cannot be read")


def test_what_was_not_signed_by_a_run_says_nothing_of_it(request):
    """Else noise from anybody would end a rollout."""
    name = request.node.name
    key = {"ESPER_BUS_KEYS": "a=" + "00" * 32}
    ours, source = codec(key), RunsOnBus(f"memory:{name}", key)
    bus = MemoryBus(name, 1000)
    bus.publish(ours.encode(beat(100), "r"))
    bus.publish(Codec().encode(beat(200), "r"))
    (found,) = source.runs(FLAG, 0.0, set())
    assert (len(found.points), found.damage) == (1, None)
    source.close()


def test_a_heartbeat_from_the_future_is_damage(bus):
    _, publish, source = bus
    publish(beat(100), beat(200, time=NOW + 9e6))
    assert "from the future" in source.runs(FLAG, 0.0, set())[0].damage
