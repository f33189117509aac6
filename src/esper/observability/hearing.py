"""Reads topics of a message bus from the first message that they hold, through all absences of its broker."""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from esper.contracts.errors import BusUnavailableError
from esper.oona.bus import Bus, Subscription, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import Body

_MOST = 500


class Hearing:
    """Takes all messages of some topics. What cannot be read is counted, and is no dead letter: others may read it.

    Args:
        connect: gives the bus; called again where its broker was away.
        codec: reads the messages.
        topics: which.
        name: of who listens.
        take: called with what has come, by the thread that follows.
        look: called with the bus now and then.
        wait_s: for messages, at most.
        tell: called with a sentence where the broker is away, once until it is back.

    Attributes:
        unreadable: messages that could not be read.
        is_up: whether the bus answers.
        has_caught_up: whether all that the topics held at first was read.
    """

    def __init__(
        self,
        connect: Callable[[], Bus],
        codec: Codec,
        topics: Sequence[str],
        name: str,
        take: Callable[[list[Body]], None],
        look: Callable[[Bus], None] = lambda bus: None,
        wait_s: float = 0.5,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._connect, self._codec, self._topics = connect, codec, topics
        self._group = f"{name}-{secrets.token_hex(6)}"
        self._take, self._look, self._wait_s, self._tell = take, look, wait_s, tell
        self.unreadable = 0
        self.is_up = self.has_caught_up = False

    def follow(self, ending: threading.Event) -> None:
        """Read until ``ending`` is set; a broker that is away is asked again and again.

        Raises:
            BusError: if the bus will never serve us.
        """
        while not ending.is_set():
            try:
                with self._joined() as (bus, subscriptions):
                    self.is_up = True
                    while not ending.is_set():
                        self._look(bus)
                        self._hear(subscriptions)
            except BusUnavailableError as error:
                if self.is_up:
                    self._tell(str(error))
                self.is_up = False
                ending.wait(1.0)

    @contextmanager
    def _joined(self) -> Iterator[tuple[Bus, list[Subscription]]]:
        bus = self._connect()
        try:
            subscriptions = [bus.subscribe(topic, self._group, "one", start="oldest") for topic in self._topics]
            yield bus, subscriptions
            for topic, subscription in zip(self._topics, subscriptions, strict=True):
                subscription.close()
                bus.forget(topic, self._group)
        finally:
            bus.close()

    def _hear(self, subscriptions: list[Subscription]) -> None:
        is_behind = False
        for subscription in subscriptions:
            deliveries = subscription.receive(_MOST, timeout_s=self._wait_s / len(subscriptions))
            bodies = []
            for delivery in deliveries:
                try:
                    bodies.append(self._codec.decode(delivery.message))
                except UnreadableError:
                    self.unreadable += 1
            self._take(bodies)
            subscription.ack(deliveries)
            is_behind |= len(deliveries) == _MOST
        self.has_caught_up |= not is_behind
