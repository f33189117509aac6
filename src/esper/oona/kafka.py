"""Messages in Kafka: one topic each, and a topic of dead letters beside it.

Kafka keeps one position for a group in each partition. So what is acked out of order is committed once all before it
is, and after the death of a consumer some of it comes again. A consumer that lives gets what it has held for too long
itself.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka import Message as Raw
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from esper.contracts.errors import BusError, BusUnavailableError
from esper.oona.bus import (
    DeadLetter,
    Delivery,
    Message,
    Start,
    Statistics,
    check_joining,
    check_messages,
    check_topic,
)
from esper.oona.url import check_reachable, shown

_ANSWER_S = 10.0
_DEAD = "esper.dead."
_TOPIC = "esper.topic."
_PARTITIONS = 4
_SESSION_MS = 6_000  # after which a consumer that is silent is dead


def connect(url: str, bound: int) -> "KafkaBus":
    """The bus of ``kafka://HOST:PORT[,HOST:PORT]``; a user and password are sent by SASL/PLAIN over TLS.

    Raises:
        BusError: if the brokers refuse us, or the URL has a bound: how long a topic holds what is Kafka's own setting.
        BusUnavailableError: if none answers.
    """
    if "bound=" in url:
        raise BusError("kafka: has no bound: set retention.ms or retention.bytes of its topics.")
    check_reachable(url, 9092)
    authority = urlsplit(url.partition("?")[0]).netloc
    who, _, servers = authority.rpartition("@")
    options: dict[str, Any] = {"bootstrap.servers": servers, "log_level": 0}
    if who:
        user, _, password = who.partition(":")
        options |= {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "PLAIN",
            "sasl.username": unquote(user),
            "sasl.password": unquote(password),
        }
    bus = KafkaBus(options, shown(url))
    bus.topics()
    return bus


class KafkaBus:
    """Implements :class:`esper.oona.bus.Bus`.

    Args:
        options: of every client.
        name: of the brokers, for errors.
    """

    def __init__(self, options: Mapping[str, Any], name: str) -> None:
        self._options, self._name = dict(options), name
        self.statistics = Statistics()
        self._producer = Producer(self._options | {"linger.ms": 2, "delivery.timeout.ms": int(1000 * _ANSWER_S)})
        self._admin = AdminClient(self._options)
        self._known: set[str] = set()  # topics that are there
        self._subscriptions: list[KafkaSubscription] = []  # to be closed: clients must not be left to the collector

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around whatever is asked of the brokers.

        Raises:
            BusError: if they will never do that.
            BusUnavailableError: if none answers.
        """
        try:
            yield
        except KafkaException as error:
            self.refuse(error.args[0])

    def refuse(self, error: KafkaError) -> None:
        """Raise what an error of the library means."""
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError.TOPIC_AUTHORIZATION_FAILED):
            raise BusError(f"{self._name} refuses us: {error.str()}. Check user, password and permissions.") from None
        raise BusUnavailableError(f"{self._name} does not serve us: {error.str()}.") from None

    def consumer(self, group: str, **options: Any) -> Consumer:
        """A client that reads."""
        fixed = {"group.id": group, "enable.auto.commit": False, "auto.offset.reset": "error"}
        return Consumer(self._options | fixed | options)

    def ensure(self, name: str) -> None:
        """Create a topic, unless it is there."""
        if name in self._known:
            return
        with self.asking():
            if self._admin.list_topics(name, timeout=_ANSWER_S).topics[name].error is not None:
                try:
                    self._admin.create_topics([NewTopic(name, num_partitions=_PARTITIONS)])[name].result(_ANSWER_S)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
        self._known.add(name)

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        self._produce([(_TOPIC + message.topic, message, {}) for message in messages])
        self.statistics.published += len(messages)

    def _produce(self, messages: Sequence[tuple[str, Message, dict[str, str]]]) -> None:
        failed: list[KafkaError] = []

        def note(error: KafkaError | None, _: Raw) -> None:
            if error is not None:
                failed.append(error)

        for name in {name for name, _, _ in messages}:
            self.ensure(name)
        for name, message, further in messages:
            headers: Any = {"headers": json.dumps(dict(message.headers)), **further}
            while True:
                try:
                    self._producer.produce(name, message.body, message.key, headers=headers, on_delivery=note)
                    break
                except BufferError:  # its queue is full
                    self._producer.poll(0.1)
            self._producer.poll(0)
        if self._producer.flush(_ANSWER_S) and not failed:
            raise BusUnavailableError(f"{self._name} does not serve us: no answer within {_ANSWER_S:g} s.")
        if failed:
            self.refuse(failed[0])

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> "KafkaSubscription":
        check_joining(topic, group, consumer)
        self.ensure(_TOPIC + topic)
        joined = KafkaSubscription(self, topic, group, start, redeliver_after_s)
        self._subscriptions.append(joined)
        return joined

    def forget(self, topic: str, group: str) -> None:
        check_topic(topic)
        name = f"{topic}.{group}"
        with self.asking():
            try:
                self._admin.delete_consumer_groups([name])[name].result(_ANSWER_S)
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError.GROUP_ID_NOT_FOUND, KafkaError.UNSUPPORTED_VERSION):
                    raise

    def topics(self) -> dict[str, int]:
        with self.asking():
            found = sorted(
                name for name in self._admin.list_topics(timeout=_ANSWER_S).topics if name.startswith(_TOPIC)
            )
            with _closing(self.consumer("esper.looking")) as looking:
                return {name.removeprefix(_TOPIC): sum(map(len, _ranges(looking, name).values())) for name in found}

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        check_topic(topic)
        self.ensure(_DEAD + topic)
        letters: dict[str, DeadLetter] = {}
        with self.asking(), _closing(self.consumer("esper.looking")) as looking:
            for raw in _all(looking, _DEAD + topic):
                headers, id_ = _headers(raw), f"{raw.partition()}-{raw.offset()}"
                if "requeued" in headers:
                    letters.pop(headers["requeued"], None)
                else:
                    letters[id_] = DeadLetter(
                        _message(topic, raw), id_, headers["group"], headers["reason"], float(headers["time"])
                    )
        return sorted(letters.values(), key=lambda letter: letter.time)[:most]

    def bury(self, delivery: Delivery, group: str, reason: str) -> None:
        """Put a message among the dead letters of its topic."""
        further = {"group": group, "reason": reason, "time": repr(time.time())}
        self._produce([(_DEAD + delivery.message.topic, delivery.message, further)])

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        letters = {letter.id: letter for letter in self.dead_letters(topic, 10**9)}
        found = [letters[one] for one in ids if one in letters]
        self.publish_batch([letter.message for letter in found])
        self._produce([(_DEAD + topic, letter.message, {"requeued": letter.id}) for letter in found])
        return len(found)

    def close(self) -> None:
        for one in self._subscriptions:
            one.close()
        self._subscriptions.clear()
        self._producer.flush(_ANSWER_S)


class KafkaSubscription:
    """Implements :class:`esper.oona.bus.Subscription`."""

    def __init__(self, bus: KafkaBus, topic: str, group: str, start: Start, redeliver_after_s: float) -> None:
        self._bus, self._topic, self._name, self._group = bus, topic, _TOPIC + topic, group
        self._redeliver_after_s, self._is_closed = redeliver_after_s, False
        self._held: dict[str, tuple[Delivery, float]] = {}
        self._done: dict[int, set[int]] = {}  # by partition: acked offsets that are not committed
        self._next: dict[int, int] = {}  # by partition: the offset that is committed next
        self._uncommitted: dict[int, TopicPartition] = {}
        self._client = bus.consumer(f"{topic}.{group}", **{"session.timeout.ms": _SESSION_MS})
        try:
            with bus.asking():
                self._begin(start)
                self._client.subscribe([self._name], on_revoke=self._forget, on_lost=self._forget)
        except BusError:
            self.close()
            raise

    def _begin(self, start: Start) -> None:
        """Give a group that is new its first position."""
        ranges = _ranges(self._client, self._name)
        parts = [TopicPartition(self._name, partition) for partition in ranges]
        committed = self._client.committed(parts, timeout=_ANSWER_S)
        if any(one.offset >= 0 for one in committed):
            return
        first = [
            TopicPartition(self._name, partition, held.stop if start == "new" else held.start)
            for partition, held in ranges.items()
        ]
        self._client.commit(offsets=first, asynchronous=False)

    def _forget(self, _: Consumer, parts: Sequence[TopicPartition]) -> None:
        for partition in [one.partition for one in parts]:
            self._done.pop(partition, None)
            self._next.pop(partition, None)
            self._uncommitted.pop(partition, None)
            for id_ in [id_ for id_ in self._held if id_.startswith(f"{partition}-")]:
                del self._held[id_]

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        deadline = time.monotonic() + timeout_s
        self._commit()
        while True:
            found = self._overdue(most)
            left = max(0.0, min([deadline, *(until for _, until in self._held.values())]) - time.monotonic())
            with self._bus.asking():
                raws = self._client.consume(most - len(found), 0.0 if found else left) if len(found) < most else []
            for raw in raws:
                if raw.error() is not None:
                    self._go_on_after(raw)
                    continue
                partition, offset = _position(raw)
                delivery = Delivery(_message(self._topic, raw), f"{partition}-{offset}")
                self._next.setdefault(partition, offset)
                self._held[delivery.id] = delivery, time.monotonic() + self._redeliver_after_s
                found.append(delivery)
            if found or time.monotonic() >= deadline:
                self._bus.statistics.count(found)
                return found

    def _overdue(self, most: int) -> list[Delivery]:
        now = time.monotonic()
        late = [delivery for delivery, until in self._held.values() if until <= now][:most]
        again = [Delivery(one.message, one.id, one.attempt + 1) for one in late]
        self._held |= {one.id: (one, now + self._redeliver_after_s) for one in again}
        return again

    def _go_on_after(self, raw: Raw) -> None:
        """Where the position of the group was deleted, go on with the oldest message there is."""
        error = raw.error()
        assert error is not None
        if error.code() not in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            if error.code() not in (KafkaError._PARTITION_EOF, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                self._bus.refuse(error)
            return
        partition, _ = _position(raw)
        part = TopicPartition(self._name, partition)
        first, _ = self._client.get_watermark_offsets(part, timeout=_ANSWER_S)
        (committed,) = self._client.committed([part], timeout=_ANSWER_S)
        self._bus.statistics.lost += max(0, first - committed.offset)
        self._client.seek(TopicPartition(self._name, partition, first))

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        mine = [one for one in deliveries if self._held.pop(one.id, None) is not None]
        offsets = {}
        for one in mine:
            partition, offset = map(int, one.id.split("-"))
            done = self._done.setdefault(partition, set())
            done.add(offset)
            while self._next[partition] in done:
                done.remove(self._next[partition])
                self._next[partition] += 1
                offsets[partition] = TopicPartition(self._name, partition, self._next[partition])
        self._uncommitted |= offsets
        self._commit()
        self._bus.statistics.acked += len(mine)

    def _commit(self) -> None:
        """Tell the broker what is done with; while the group deals its partitions anew that waits for the next time."""
        if not self._uncommitted:
            return
        with self._bus.asking():
            try:
                self._client.commit(offsets=list(self._uncommitted.values()), asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.REBALANCE_IN_PROGRESS:
                    raise
            else:
                self._uncommitted.clear()

    @property
    def num_partitions(self) -> int:
        """How many partitions this consumer reads now; 0 until its group has dealt them."""
        return len(self._client.assignment())

    def reject(self, delivery: Delivery, reason: str) -> None:
        if delivery.id not in self._held:
            return
        self._bus.bury(delivery, self._group, reason)
        self.ack([delivery])
        self._bus.statistics.acked -= 1
        self._bus.statistics.rejected += 1

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._client.close()
            self._uncommitted.clear()


@contextmanager
def _closing(client: Consumer) -> Iterator[Consumer]:
    try:
        yield client
    finally:
        client.close()


def _ranges(client: Consumer, name: str) -> dict[int, range]:
    """By partition: the offsets that it holds."""
    partitions = client.list_topics(name, timeout=_ANSWER_S).topics[name].partitions
    return {
        one: range(*client.get_watermark_offsets(TopicPartition(name, one), timeout=_ANSWER_S)) for one in partitions
    }


def _all(client: Consumer, name: str) -> Iterator[Raw]:
    """Whatever a topic holds now, in the order of each partition."""
    ends = {partition: held.stop for partition, held in _ranges(client, name).items() if held}
    client.assign([TopicPartition(name, partition, OFFSET_BEGINNING) for partition in ends])
    while ends:
        raw = client.poll(_ANSWER_S)
        if raw is None or (error := raw.error()) is not None:
            raise KafkaException(error if raw is not None else KafkaError(KafkaError._TIMED_OUT))
        yield raw
        partition, offset = _position(raw)
        if offset + 1 >= ends[partition]:
            del ends[partition]


def _position(raw: Raw) -> tuple[int, int]:
    """Partition and offset of a message that came from a broker."""
    return raw.partition() or 0, raw.offset() or 0


def _headers(raw: Raw) -> dict[str, str]:
    headers: Any = raw.headers() or ()
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


def _message(topic: str, raw: Raw) -> Message:
    headers = json.loads(_headers(raw).get("headers", "{}"))
    return Message(topic, (raw.key() or b"").decode(errors="replace"), raw.value() or b"", headers)
