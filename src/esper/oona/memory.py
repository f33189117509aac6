"""Messages within one process. All buses of one name share them; they are gone with the process."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from esper.oona.bus import (
    DEFAULT_BOUND,
    DeadLetter,
    Delivery,
    Message,
    Start,
    Statistics,
    check_joining,
    check_messages,
    check_topic,
)


@dataclass
class _Held:
    """What a consumer has and has not answered."""

    delivery: Delivery
    until: float  # time.monotonic(), after which others get it


@dataclass
class _Group:
    next: int  # number of the message that it reads next
    held: dict[int, _Held] = field(default_factory=dict)


@dataclass
class _Topic:
    first: int = 0  # number of the oldest message that it holds
    messages: deque[Message] = field(default_factory=deque)
    groups: dict[str, _Group] = field(default_factory=dict)
    dead: dict[str, DeadLetter] = field(default_factory=dict)
    rejected: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.messages)


class _Store:
    """The topics of one name."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.topics: dict[str, _Topic] = {}


_STORES: dict[str, _Store] = {}
_OPENING = threading.Lock()


class MemoryBus:
    """Implements :class:`esper.oona.bus.Bus`.

    Args:
        name: of the messages that are shared.
        bound: messages that a topic holds at most.
    """

    def __init__(self, name: str = "", bound: int = DEFAULT_BOUND) -> None:
        with _OPENING:
            self._store = _STORES.setdefault(name, _Store())
        self._bound = bound
        self.statistics = Statistics()

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        with self._store.changed:
            for message in messages:
                topic = self._topic(message.topic)
                topic.messages.append(message)
                if len(topic.messages) > self._bound:
                    topic.messages.popleft()
                    topic.first += 1
            self.statistics.published += len(messages)
            self._store.changed.notify_all()

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> "MemorySubscription":
        check_joining(topic, group, consumer)
        with self._store.changed:
            of_topic = self._topic(topic)
            joined = of_topic.groups.setdefault(group, _Group(of_topic.end if start == "new" else of_topic.first))
        return MemorySubscription(self._store, of_topic, group, joined, redeliver_after_s, self.statistics)

    def forget(self, topic: str, group: str) -> None:
        check_topic(topic)
        with self._store.changed:
            self._topic(topic).groups.pop(group, None)

    def topics(self) -> dict[str, int]:
        with self._store.changed:
            return {name: len(topic.messages) for name, topic in sorted(self._store.topics.items())}

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        check_topic(topic)
        with self._store.changed:
            return list(self._topic(topic).dead.values())[:most]

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        check_topic(topic)
        with self._store.changed:
            dead = self._topic(topic).dead
            found = [dead.pop(one) for one in ids if one in dead]
            self.publish_batch([letter.message for letter in found])
        return len(found)

    def close(self) -> None:
        pass

    def _topic(self, name: str) -> _Topic:
        return self._store.topics.setdefault(name, _Topic())


class MemorySubscription:
    """Implements :class:`esper.oona.bus.Subscription`."""

    def __init__(
        self, store: _Store, topic: _Topic, name: str, group: _Group, redeliver_after_s: float, statistics: Statistics
    ) -> None:
        self._store, self._topic, self._name, self._group = store, topic, name, group
        self._redeliver_after_s, self._statistics = redeliver_after_s, statistics

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        deadline = time.monotonic() + timeout_s
        with self._store.changed:
            while not (found := self._take(most)):
                overdue = min((one.until for one in self._group.held.values()), default=deadline)
                left = min(deadline, overdue) - time.monotonic()
                if time.monotonic() >= deadline:
                    break
                self._store.changed.wait(max(left, 0.0))
            self._statistics.count(found)
        return found

    def _take(self, most: int) -> list[Delivery]:
        topic, group, now = self._topic, self._group, time.monotonic()
        self._statistics.lost += max(0, topic.first - group.next)
        group.next = max(group.next, topic.first)
        found = {
            number: Delivery(one.delivery.message, one.delivery.id, one.delivery.attempt + 1)
            for number, one in group.held.items()
            if one.until <= now
        }
        found = dict(list(found.items())[:most])
        for number in range(group.next, min(topic.end, group.next + most - len(found))):
            found[number] = Delivery(topic.messages[number - topic.first], str(number))
            group.next = number + 1
        for number, delivery in found.items():
            group.held[number] = _Held(delivery, now + self._redeliver_after_s)
        return list(found.values())

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        with self._store.changed:
            for one in deliveries:
                self._statistics.acked += self._group.held.pop(int(one.id), None) is not None

    def reject(self, delivery: Delivery, reason: str) -> None:
        with self._store.changed:
            if self._group.held.pop(int(delivery.id), None) is None:
                return
            self._topic.rejected += 1
            number = str(self._topic.rejected)
            self._topic.dead[number] = DeadLetter(delivery.message, number, self._name, reason, time.time())
            self._statistics.rejected += 1

    def close(self) -> None:
        pass
