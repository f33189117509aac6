"""Processes that publish and consume, for the benchmarks of the bus."""

import multiprocessing
import os
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zstandard

from esper.oona.bus import Message
from esper.oona.codec import Codec
from esper.oona.messages import CommandAck, LayerHealthReport, RollbackCommand, column
from esper.oona.url import open_bus
from esper.runtime.link.publisher import TelemetryPublisher

CONTEXT = multiprocessing.get_context("spawn")
BATCH = 500
COLUMNS = ("chunk_variance", "inactive_ratio", "mean_abs_correlation", "gradient_norm")


def report(seeds: int, layer_id: str = "layer") -> LayerHealthReport:
    """What a place with so many seeds would tell: four columns of numbers without a pattern."""
    values = [1e-3 * (number * 7919 % 1000) for number in range(seeds)]
    return LayerHealthReport(
        run_id="bench",
        step=1,
        epoch=1,
        layer_id=layer_id,
        states=bytes(seeds),
        columns={name: column(values) for name in COLUMNS},
    )


def encoded_report(seeds: int) -> bytes:
    """The bytes of a report."""
    return Codec().encode(report(seeds), "bench").body


def publish(url: str, topic: str, body_bytes: int, count: int, started: Any) -> None:
    """So many messages of random bytes, in batches."""
    bus, body = open_bus(url), os.urandom(body_bytes)
    batch = [Message(topic, "bench", body)] * BATCH
    started.wait()
    for _ in range(count // BATCH):
        bus.publish_batch(batch)
    bus.close()


def consume(url: str, topic: str, count: int, ready: Any, result: Any) -> None:
    """So many messages, acked in batches; tells the seconds from the first publish to the last ack, and counts."""
    bus = open_bus(url)
    subscription = bus.subscribe(topic, "bench", f"consumer-{os.getpid()}")
    ready.wait()
    got, begun = 0, time.perf_counter()
    while got < count and time.perf_counter() - begun < 120:
        found = subscription.receive(BATCH, timeout_s=5.0)
        subscription.ack(found)
        got += len(found)
    result.put((time.perf_counter() - begun, got, bus.statistics.lost))
    bus.close()


def throughput(url: str, body_bytes: int, count: int) -> dict[str, float]:
    """Messages a second that one process publishes in batches and another one consumes with acks, both at once."""
    topic = f"bench.throughput_{secrets.token_hex(4)}"
    started, result = CONTEXT.Barrier(3, timeout=60), CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=publish, args=(url, topic, body_bytes, count, started)),
        CONTEXT.Process(target=consume, args=(url, topic, count, started, result)),
    ]
    for process in processes:
        process.start()
    started.wait()
    seconds, got, lost = result.get(timeout=600)
    for process in processes:
        process.join()
    return {"per_second": round(got / seconds), "published": count, "consumed": got, "lost": lost}


def tell(url: str, seeds: int, places: int, per_second: float, seconds: float, result: Any) -> None:
    """Reports of so many places at a rate, for so long; tells how many were published, and the share of the time."""
    bus, codec = open_bus(url), Codec()
    begun, number, busy = time.perf_counter(), 0, 0.0
    one = report(seeds)
    while (now := time.perf_counter() - begun) < seconds:
        due = int(now * per_second) - number
        if due < 1:
            time.sleep(0.001)
            continue
        due = min(due, BATCH)
        start = time.perf_counter()
        bus.publish_batch([codec.encode(one, "bench") for _ in range(due)])
        busy += time.perf_counter() - start
        number += due
    result.put((number / (time.perf_counter() - begun), busy / seconds))
    bus.close()


def answer(url: str, ready: Any, ending: Any) -> None:
    """Acks each command, as a run that does nothing else would."""
    bus, codec = open_bus(url), Codec()
    subscription = bus.subscribe(RollbackCommand.topic, "bench-run", "run")
    ready.set()
    while not ending.is_set():
        for delivery in subscription.receive(timeout_s=0.5):
            asked: Any = codec.decode(delivery.message)
            ack = CommandAck(run_id="bench", command_id=asked.command_id, accepted=True, reason="", versions=[], step=1)
            bus.publish(codec.encode(ack, "bench"))
            subscription.ack([delivery])
    bus.close()


def latency(url: str, seconds: float, reports_per_second: float, seeds: int = 1000) -> dict[str, float]:
    """Milliseconds from a command to its ack, while reports are published and consumed at a rate."""
    ready, ending, told = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Queue()
    processes: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(answer, (url, ready, ending))]
    if reports_per_second:
        processes.append((tell, (url, seeds, 1, reports_per_second, seconds, told)))
        processes.append((drain, (url, LayerHealthReport.topic, ending)))
    running = [CONTEXT.Process(target=target, args=args) for target, args in processes]
    for process in running:
        process.start()
    ready.wait()
    bus, codec, waits = open_bus(url), Codec(), []
    acks = bus.subscribe(CommandAck.topic, f"bench-{secrets.token_hex(3)}", "asker")
    begun, number = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        number += 1
        start = time.perf_counter()
        command = RollbackCommand(run_id="bench", command_id=str(number))
        bus.publish(codec.encode(command, "bench"))
        found: set[str] = set()
        while str(number) not in found:
            deliveries = acks.receive(timeout_s=5.0)
            found |= {getattr(codec.decode(one.message), "command_id", "") for one in deliveries}
            waits += [time.perf_counter() - start] if str(number) in found else []
            acks.ack(deliveries)
        time.sleep(0.01)
    rate = told.get() if reports_per_second else (0.0, 0.0)
    ending.set()
    for process in running:
        process.join()
    bus.close()
    waits.sort()
    return {
        "commands": len(waits),
        "p50_ms": round(1e3 * waits[len(waits) // 2], 2),
        "p99_ms": round(1e3 * waits[int(0.99 * len(waits))], 2),
        "worst_ms": round(1e3 * waits[-1], 2),
        "reports_per_second": round(rate[0]),
        "busy_share_of_the_publisher": round(rate[1], 3),
    }


def peak(url: str, lines_per_second: float, seconds: float, places: int = 200, seeds: int = 1000) -> dict[str, Any]:
    """What a run with so many seeds hands to its publisher at a rate, and what becomes of it: all is counted."""
    values = [1e-3 * (number * 7919 % 1000) for number in range(seeds)]
    line = {
        "event": "telemetry",
        "step": 1,
        "epoch": 1,
        "places": {f"layer{index}": dict.fromkeys(COLUMNS, values) | {"awake": {}} for index in range(places)},
    }
    publisher = TelemetryPublisher(lambda: open_bus(url), Codec(), "bench", bound=20)
    begun, handed, longest = time.perf_counter(), 0, 0.0
    while (now := time.perf_counter() - begun) < seconds:
        if handed > now * lines_per_second:
            time.sleep(0.001)
            continue
        start = time.perf_counter()
        publisher(line)
        longest = max(longest, time.perf_counter() - start)
        handed += 1
    all_published = publisher.close(60.0)
    counted = publisher.statistics
    return {
        "reports_per_second": round(places * lines_per_second),
        "reports_handed_over": handed * places,
        "published": counted.published,
        "dropped": counted.dropped * places,
        "all_accounted_for": all_published and counted.published + counted.dropped * places == handed * places,
        "longest_call_ms": round(1e3 * longest, 2),
    }


def compression() -> dict[str, Any]:
    """What zstd takes off reports of 1,000 seeds, and microseconds that it takes."""
    chance, compressor = random.Random(0), zstandard.ZstdCompressor(level=1)
    found = {}
    few = [0.0, 0.25, 0.5, 1.0]
    for kind, value in (("random numbers", chance.random), ("four values", lambda: chance.choice(few))):
        columns = {name: column([value() for _ in range(1000)]) for name in COLUMNS}
        body = LayerHealthReport(run_id="bench", step=1, epoch=1, layer_id="l", states=bytes(1000), columns=columns)
        raw = msgspec.msgpack.encode(body)
        start = time.perf_counter()
        for _ in range(1000):
            smaller = compressor.compress(raw)
        microseconds = 1e3 * (time.perf_counter() - start)
        found[kind] = {"bytes": len(raw), "share_left": round(len(smaller) / len(raw), 3), "us": round(microseconds, 1)}
    return found


def drain(url: str, topic: str, ending: Any) -> None:
    """Consumes and acks whatever comes."""
    bus = open_bus(url)
    subscription = bus.subscribe(topic, "bench-drain", "one")
    while not ending.is_set():
        subscription.ack(subscription.receive(BATCH, timeout_s=0.2))
    bus.close()
