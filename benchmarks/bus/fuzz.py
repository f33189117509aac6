"""Messages that are noise, to a run that listens: what comes of them."""

import os
import random
import time
from dataclasses import replace
from typing import Any

import torch

from esper.contracts.config import GrowthConfig
from esper.evaluation.growing import growing
from esper.oona.bus import Message, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import GerminationCommand, RemovalCommand, RollbackCommand
from esper.oona.url import open_bus
from esper.runtime.link.link import Link
from esper.tasks.catalogue import load_task

NUMBER = 100_000
TOPIC = GerminationCommand.topic


def noise(number: int, seed: int) -> list[Message]:
    """Messages to the topic of commands, each made of a good one by a few changes, or of random bytes."""
    chance, codec = random.Random(seed), Codec()
    shared: dict[str, Any] = {"run_id": "bench", "layer_id": "0", "seed_ids": 1}
    good = [
        codec.encode(GerminationCommand(command_id="g", blueprint="glu", settings={}, **shared), "bench"),
        codec.encode(RemovalCommand(command_id="r", **shared), "bench"),
        codec.encode(RollbackCommand(run_id="bench", command_id="b"), "bench"),
    ]
    found: list[Message] = []
    while len(found) < number:
        one = chance.choice(good)
        raw = bytearray(one.body if chance.random() < 0.8 else os.urandom(chance.randint(0, 300)))
        for _ in range(chance.randint(1, 5) if raw else 0):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        headers = dict(one.headers)
        if chance.random() < 0.3:
            headers[chance.choice(list(headers))] = chance.choice(["", "2", "é", "x" * 1000, "LayerHealthReport"])
        changed = replace(one, body=bytes(raw[: chance.randint(0, len(raw) + 1)]), headers=headers)
        if not is_readable(codec, changed):  # else it is a command, if one that nobody meant
            found.append(changed)
    return found


def is_readable(codec: Codec, message: Message) -> bool:
    """Whether a message is a command after all."""
    try:
        codec.decode(message)
    except UnreadableError:
        return False
    return True


def measure() -> dict[str, Any]:
    """Let a run hear all of it between its steps."""
    torch.set_num_threads(1)
    task, url = load_task("digits", 0, "mlp"), "memory:fuzz"
    link = Link(url, "bench")
    growth = growing(
        task, GrowthConfig(max_rounds=0), epochs=10**4, batch_size=32, lr=5e-3, schedule="cosine", seed=0, on_event=link
    )
    link.follow(growth.session)
    bus, sent = open_bus(url), 0
    batches = iter(growth.loader)
    growth.session.step(next(batches))
    before = growth.session.events
    for seed in range(NUMBER // 1000):
        bus.publish_batch(noise(1000, seed))
        sent += 1000
    deadline = time.monotonic() + 600
    while len(bus.dead_letters(TOPIC, sent + 1)) < sent and time.monotonic() < deadline:
        time.sleep(0.2)
    letters = bus.dead_letters(TOPIC, sent + 1)
    growth.session.step(next(batches))
    assert link.handler is not None
    handled = link.handler.statistics
    link.close()
    return {
        "messages": sent,
        "dead_letters": len(letters),
        "without_a_reason": sum(not letter.reason for letter in letters),
        "kinds_of_reasons": len({letter.reason[:40] for letter in letters}),
        "commands_carried_out_or_refused": handled.carried_out + handled.refused,
        "events_of_the_run_in_between": len(growth.session.events) - len(before),
    }
