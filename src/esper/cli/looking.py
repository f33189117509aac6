"""``esper bus``: prints what is on a message bus."""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from esper.contracts.errors import ConfigError, closest
from esper.oona.bus import Bus, Message, UnreadableError
from esper.oona.codec import Codec
from esper.oona.environment import codec
from esper.oona.messages import TOPICS, LayerHealthReport, values
from esper.oona.url import open_bus

_LOOK_S = 0.5


def topics(url: str) -> None:
    """Print topics and how many messages they hold."""
    with _opened(url) as bus:
        found = bus.topics()
    if not found:
        print("There are no topics yet.")
    for name, count in found.items():
        print(f"{name:<32}{count:>10,}")


def tail(url: str, topic: str | None, *, oldest: bool, count: int | None) -> None:
    """Print messages as they come, until interrupted or so many were printed.

    Raises:
        ConfigError: if there is no such topic.
    """
    group = f"tail-{secrets.token_hex(6)}"
    with _opened(url) as bus:
        wanted = TOPICS if topic is None else [_known(bus, topic)]
        start: Any = "oldest" if oldest else "new"
        subscriptions = {name: bus.subscribe(name, group, "tail", start=start) for name in wanted}
        reading, printed = codec(os.environ), 0
        try:
            while True:
                for subscription in subscriptions.values():
                    most = 100 if count is None else count - printed
                    for delivery in subscription.receive(min(most, 100), timeout_s=_LOOK_S / len(subscriptions)):
                        print(json.dumps(_told(reading, delivery.message)), flush=True)
                        subscription.ack([delivery])
                        printed += 1
                    if printed == count:
                        return
        finally:
            for name, subscription in subscriptions.items():
                subscription.close()
                bus.forget(name, group)


def dead_letters(url: str, topic: str) -> None:
    """Print what was rejected in a topic, and why."""
    with _opened(url) as bus:
        for letter in bus.dead_letters(_known(bus, topic)):
            told = {"id": letter.id, "time": letter.time, "group": letter.group, "reason": letter.reason}
            print(json.dumps(told | {"key": letter.message.key, "bytes": len(letter.message.body)}))


def requeue(url: str, topic: str, ids: Sequence[str]) -> None:
    """Publish dead letters again; all of them if none is named."""
    with _opened(url) as bus:
        known = [letter.id for letter in bus.dead_letters(_known(bus, topic))]
        if unknown := [one for one in ids if one not in known]:
            raise ConfigError(f"There is no dead letter {unknown[0]!r} in {topic}. {closest(unknown[0], known)}")
        print(f"{bus.requeue(topic, ids or known)} messages were published again.")


@contextmanager
def _opened(url: str) -> Iterator[Bus]:
    bus = open_bus(url)
    try:
        yield bus
    finally:
        bus.close()


def _known(bus: Bus, topic: str) -> str:
    known = {*TOPICS, *bus.topics()}
    if topic not in known:
        raise ConfigError(f"There is no topic {topic!r}. {closest(topic, known)}")
    return topic


def _told(reading: Codec, message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"topic": message.topic, "key": message.key, "kind": message.headers.get("kind")}
    try:
        body = reading.decode(message)
    except UnreadableError as error:
        return told | {"unreadable": str(error)}
    fields = msgspec.to_builtins(body)
    if isinstance(body, LayerHealthReport):
        fields |= {"states": list(body.states)}
        fields |= {"columns": {name: values(column) for name, column in body.columns.items()}}
    return told | {"body": fields}
