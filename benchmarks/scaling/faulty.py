"""A bus that fails, doubles, and, to see whether that is noticed, loses."""

import random
from collections.abc import Sequence
from typing import Any

from esper.contracts.errors import BusUnavailableError
from esper.oona.bus import Bus, Message, Start, Subscription


class FaultyBus:
    """Implements :class:`esper.oona.bus.Bus` by another one.

    Args:
        bus: the other.
        seed: of the moments.
        fails: share of the publications that end with an error; half of them were taken all the same.
        doubles: share of the messages that are published twice.
        loses: share of the messages that are said to be taken, and are not. No bus may do that.
        haste: by how much sooner what a consumer holds goes to another one, so that a simulation need not wait.
    """

    def __init__(
        self, bus: Bus, seed: int, *, fails: float = 0.0, doubles: float = 0.0, loses: float = 0.0, haste: float = 1.0
    ) -> None:
        self._bus, self._chance = bus, random.Random(seed)
        self._fails, self._doubles, self._loses, self._haste = fails, doubles, loses, haste
        self.statistics = bus.statistics
        self.failed = self.doubled = self.lost = 0

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        if fails := self._chance.random() < self._fails:
            self.failed += 1
            if self._chance.random() < 0.5:
                raise BusUnavailableError("the bus does not answer")
        sent = []
        for message in messages:
            if self._chance.random() < self._loses:
                self.lost += 1
                continue
            is_double = self._chance.random() < self._doubles
            self.doubled += is_double
            sent += [message, message] if is_double else [message]
        self._bus.publish_batch(sent)
        if fails:
            raise BusUnavailableError("the bus has not said whether it took them")

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> Subscription:
        return self._bus.subscribe(
            topic, group, consumer, start=start, redeliver_after_s=redeliver_after_s / self._haste
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)
