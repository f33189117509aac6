"""What a message bus promises, whatever carries it.

- **At least once.** What was published stays until every group that had subscribed by then has acked or rejected it, or
  until the topic holds more than its bound; then the oldest goes. What a group has missed by that is counted.
- **Groups.** Each group hears every message that is published after its first subscription (or, with
  ``start="oldest"``, all that the topic still holds). The consumers of a group share its messages.
- **Order.** Messages of one key are delivered in the order in which one publisher published them, while its group has
  one consumer. What is delivered again may come behind later ones.
- **Dead consumers.** What a consumer received and neither acked nor rejected within ``redeliver_after_s`` goes to
  whoever of its group receives next.
- **Dead letters.** What is rejected is kept with its reason, apart from its topic, until it is requeued.

A bus may be used by several threads, a subscription by one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from esper.contracts.errors import BusError

Start = Literal["new", "oldest"]

DEFAULT_BOUND = 1_000_000
"""Messages that a topic holds at most, unless the URL says otherwise (``?bound=``)."""

_TOPIC = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_LONGEST_NAME = 200


class UnreadableError(BusError):
    """A message that nobody may act on; its text is the reason for the dead letter."""


class UntrustedError(UnreadableError):
    """A message that was not signed as it must be, or is late: nobody knows whose it is."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is carried.

    Args:
        topic: words of ``a`` to ``z``, digits and ``_`` with dots between, such as ``"kasmina.lifecycle"``.
        key: whose order counts; a run's id.
        body: the payload.
        headers: what is known about it without opening it.
    """

    topic: str
    key: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message in the hands of one consumer.

    Args:
        message: the message.
        id: its name within the topic; the same in every delivery.
        attempt: 1 for the first delivery to this group, as far as the transport knows.
    """

    message: Message
    id: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a group has rejected.

    Args:
        message: as it was published.
        id: its name among the dead letters of its topic.
        group: which rejected it.
        reason: why.
        time: when, in seconds since 1970.
    """

    message: Message
    id: str
    group: str
    reason: str
    time: float


@dataclass(slots=True)
class Statistics:
    """What one bus object has done; counts of messages.

    Args:
        published: that the transport has taken.
        delivered: for the first time.
        redelivered: again.
        acked: by its subscriptions.
        rejected: by its subscriptions.
        lost: that were dropped from a topic before a group of its subscriptions had read them.
        wiped: how often a topic was found emptied, with all that was known of its groups: how many messages that
            cost nobody can say.
    """

    published: int = 0
    delivered: int = 0
    redelivered: int = 0
    acked: int = 0
    rejected: int = 0
    lost: int = 0
    wiped: int = 0

    def count(self, deliveries: Sequence[Delivery]) -> None:
        """Note what was handed to a consumer."""
        again = sum(one.attempt > 1 for one in deliveries)
        self.redelivered += again
        self.delivered += len(deliveries) - again


class Subscription(Protocol):
    """One consumer of one group, on one topic."""

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        """The next messages, as soon as there are any.

        Args:
            most: how many at the most.
            timeout_s: how long to wait for the first; 0 does not wait.

        Returns:
            None to ``most`` deliveries.

        Raises:
            BusUnavailableError: if the broker does not answer.
        """

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """They are done with: this group never sees them again.

        Raises:
            BusUnavailableError: if the broker does not answer; they may then come again.
        """

    def reject(self, delivery: Delivery, reason: str) -> None:
        """It can never be used: keep it among the dead letters, and never deliver it to this group again.

        Raises:
            BusUnavailableError: if the broker does not answer; it may then come again.
        """

    def close(self) -> None:
        """Receive no more. What was neither acked nor rejected goes to others of the group, in time."""


class Bus(Protocol):
    """A connection to where messages are kept.

    Attributes:
        statistics: what went through this object.
    """

    statistics: Statistics

    def publish(self, message: Message) -> None:
        """Put one message into its topic; :meth:`publish_batch` is much faster for many.

        Raises:
            BusError: if its topic or key is no name.
            BusUnavailableError: if the broker does not answer. Whether it has taken the message is not known then.
        """

    def publish_batch(self, messages: Sequence[Message]) -> None:
        """Put messages into their topics, in this order.

        Raises:
            BusError: if a topic or key is no name; nothing is published then.
            BusUnavailableError: if the broker does not answer. Which of them it has taken is not known then.
        """

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> Subscription:
        """Join a group.

        Args:
            topic: what to hear; it need not exist yet.
            group: those who share the work.
            consumer: one of them, a name of its own.
            start: for a group that is new: what it hears first.
            redeliver_after_s: after how long others get what this one holds. Where the broker keeps that time itself
                (NATS), it is what the first consumer of the group said.

        Raises:
            BusError: if one of them is no name.
            BusUnavailableError: if the broker does not answer.
        """

    def forget(self, topic: str, group: str) -> None:
        """Let a group end, with all that it has not read; its subscriptions must be closed. There may be none."""

    def topics(self) -> dict[str, int]:
        """How many messages each topic holds."""

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        """What was rejected in a topic and not requeued since, the oldest first."""

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        """Publish dead letters again, to all groups, and forget them.

        Returns:
            How many of them there were.
        """

    def close(self) -> None:
        """Let the connection go."""


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse messages whose topic or key is no name.

    Raises:
        BusError: saying which.
    """
    for topic in {message.topic for message in messages}:
        check_topic(topic)
    for key in {message.key for message in messages}:
        if not 1 <= len(key) <= _LONGEST_NAME or not key.isprintable():
            raise BusError(f"{key[:80]!r} is no key. Give 1 to {_LONGEST_NAME} printable signs.")


def check_topic(topic: str) -> None:
    """Refuse what is no name of a topic.

    Raises:
        BusError: saying what a name is.
    """
    if not _TOPIC.fullmatch(topic) or len(topic) > _LONGEST_NAME:
        raise BusError(
            f"{topic[:80]!r} is no topic. Its words are of a to z, digits and _, with dots between: kasmina.lifecycle."
        )


def check_joining(topic: str, group: str, consumer: str) -> None:
    """Refuse to join under what is no name.

    Raises:
        BusError: saying what a name is.
    """
    check_topic(topic)
    _check_name("group", group)
    _check_name("consumer", consumer)


def _check_name(what: str, name: str) -> None:
    """Refuse what is no name of a group or consumer.

    Raises:
        BusError: saying what a name is.
    """
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable() or any(sign in name for sign in " \t*>."):
        raise BusError(f"{name[:80]!r} is no {what}. Give 1 to {_LONGEST_NAME} signs, without spaces, dots, * and >.")
