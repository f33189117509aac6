"""One run with many layers on a bus: its reports, its questions and where they end.

Seconds are the processor's, of all threads, so that others on the machine do not count.
"""

import gc
import random
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.scaling.light import CONFIG, line, observation
from esper.oona.bus import Bus, Message
from esper.oona.codec import LARGEST_BYTES, Codec
from esper.oona.memory import MemoryBus
from esper.oona.messages import Decision, LayerHealthReport, ObservationReport
from esper.runtime.link.publisher import TelemetryPublisher
from esper.tamiyo.serving import Controller

LAYERS = (100, 1000, 10_000, 100_000)


def reports(layers: int, seeds: int = 4) -> dict[str, Any]:
    """One boundary of a run through its publisher, and what the line of the log takes while it waits."""
    gc.collect()
    before = _resident_bytes()
    told = line(layers, seeds, 1, random.Random(0))
    waiting = _resident_bytes() - before
    bus = MemoryBus(f"one-run-{layers}-{secrets.token_hex(4)}")
    subscription = bus.subscribe(LayerHealthReport.topic, "collector", "one")
    publisher = TelemetryPublisher(lambda: bus, Codec(), "run")
    begun = time.process_time()
    publisher(told)
    has_all = publisher.close(600.0)
    published = time.process_time() - begun
    codec, count, size = Codec(), 0, 0
    begun = time.process_time()
    while found := subscription.receive(500):
        for one in found:
            codec.decode(one.message)
            size += len(one.message.body)
        subscription.ack(found)
        count += len(found)
    collected = time.process_time() - begun
    assert has_all
    assert count == layers
    return {
        "layers": layers,
        "bytes of a line that waits": waiting,
        "bytes of the line in the log": len(msgspec.json.encode(told)),
        "bytes of its messages": size,
        "publishing s": round(published, 3),
        "collecting s": round(collected, 3),
    }


def question(layers: int, seeds: int = 4) -> dict[str, Any]:
    """One question and its decision, or its refusal."""
    body = ObservationReport(
        run_id="run",
        number=1,
        config=CONFIG,
        observation=observation(layers, seeds, 1000, random.Random(0)),
        answers=[],
        state=None,
    )
    codec, told = Codec(), []
    bus: Bus = MemoryBus(f"question-{layers}-{secrets.token_hex(4)}")
    controller = Controller(bus, codec, "heuristic", "one", tell=told.append)
    asked = bus.subscribe(ObservationReport.topic, "tamiyo", "one")
    decisions = bus.subscribe(Decision.topic, "run", "policy")
    raw = len(msgspec.msgpack.encode(body))
    begun = time.process_time()
    message: Message = codec.encode(body, "run")
    encoded = time.process_time()
    bus.publish(message)
    controller.answer_next(asked, 0.0)
    answered = time.process_time()
    came = decisions.receive()
    return {
        "layers": layers,
        "seeds": seeds,
        "bytes": raw,
        "bytes on the bus": len(message.body),
        "asking s": round(encoded - begun, 3),
        "answering s": round(answered - encoded, 3),
        "decided": len(came) == 1,
        "said": told[-1][:200],
        "layers that fit": int(LARGEST_BYTES / (raw / layers)),
    }


def service_seconds(layers: int, number: int, seeds: int = 4) -> list[float]:
    """Processor seconds of a controller for each of so many questions, from its message to the decision's ack."""
    codec, chance = Codec(), random.Random(0)
    bus = MemoryBus(f"service-{secrets.token_hex(4)}")
    controller = Controller(bus, codec, "heuristic", "one")
    subscription, found = bus.subscribe(ObservationReport.topic, "tamiyo", "one"), []
    for count in range(number):
        seen = observation(layers, seeds, 1000, chance)
        body = ObservationReport(run_id="run", number=count, config=CONFIG, observation=seen, answers=[], state=None)
        bus.publish(codec.encode(body, "run"))
        begun = time.process_time()
        controller.answer_next(subscription, 0.0)
        found.append(time.process_time() - begun)
    return found


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
