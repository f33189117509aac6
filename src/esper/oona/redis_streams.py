"""Messages in Redis Streams, one stream a topic, with consumer groups.

How much survives the death of the server is the server's: without an append-only file (``appendonly yes``) what it had
not saved is gone, which is noticed and counted as ``wiped``.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

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
from esper.oona.url import shown

_TOPIC, _DEAD = "esper:topic:", "esper:dead:"
_CONNECT_S = 3.0
_ANSWER_S = 5.0
_LONGEST_BLOCK_S = 2.0  # below the time an answer may take


def connect(url: str, bound: int) -> "RedisBus":
    """The bus of ``redis://`` or ``rediss://``.

    Raises:
        BusError: if the server refuses the password.
        BusUnavailableError: if it does not answer.
    """
    client = redis.Redis.from_url(
        url.partition("?")[0], socket_connect_timeout=_CONNECT_S, socket_timeout=_ANSWER_S, health_check_interval=0
    )
    bus = RedisBus(client, bound, shown(url))
    with bus.asking():
        client.ping()
    return bus


class RedisBus:
    """Implements :class:`esper.oona.bus.Bus`.

    Args:
        client: a ``redis.Redis`` that is connected to the server.
        bound: messages that a topic holds, or a few more.
        name: of the server, for errors.
    """

    def __init__(self, client: Any, bound: int, name: str) -> None:
        self.client, self._bound, self._name = client, bound, name
        self.statistics = Statistics()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around whatever is asked of the server.

        Raises:
            BusError: if it will never do that, for lack of a password or permission.
            BusUnavailableError: if it does not answer, or has no memory left.
        """
        try:
            yield
        except (AuthenticationError, NoPermissionError) as error:
            raise BusError(
                f"{self._name} refuses us: {error}. Check user, password and what the user may do."
            ) from None
        except RedisError as error:
            told = str(error).rstrip(".") or type(error).__name__
            raise BusUnavailableError(f"{self._name} does not serve us: {told}.") from None

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        with self.asking():
            pipeline = self.client.pipeline(transaction=False)
            for message in messages:
                pipeline.xadd(_TOPIC + message.topic, _fields(message), maxlen=self._bound, approximate=True)
            pipeline.execute()
        self.statistics.published += len(messages)

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> "RedisSubscription":
        check_joining(topic, group, consumer)
        with self.asking():
            self.join(topic, group, start)
        return RedisSubscription(self, topic, group, consumer, redeliver_after_s)

    def join(self, topic: str, group: str, start: Start) -> None:
        """Create a group, unless it is there."""
        key, last, read = _TOPIC + topic, "0", 0
        try:
            if start == "new" and self.client.exists(key):
                stream = self.client.xinfo_stream(key)
                last, read = stream["last-generated-id"], stream["entries-added"]
            elif start == "oldest" and self.client.exists(key):  # what is gone by now was not meant for it
                stream = self.client.xinfo_stream(key)
                read = stream["entries-added"] - stream["length"]
            self.client.xgroup_create(key, group, id=last, mkstream=True, entries_read=read)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def forget(self, topic: str, group: str) -> None:
        check_topic(topic)
        with self.asking():
            if self.client.exists(_TOPIC + topic):
                self.client.xgroup_destroy(_TOPIC + topic, group)

    def topics(self) -> dict[str, int]:
        with self.asking():
            keys = sorted(key.decode() for key in self.client.scan_iter(_TOPIC + "*", count=1000))
            return {key.removeprefix(_TOPIC): int(self.client.xlen(key)) for key in keys}

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        check_topic(topic)
        with self.asking():
            return [_letter(topic, entry) for entry in self.client.xrange(_DEAD + topic, count=most)]

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        check_topic(topic)
        number = 0
        with self.asking():
            for one in ids:
                for entry in self.client.xrange(_DEAD + topic, one, one):
                    pipeline = self.client.pipeline(transaction=True)
                    pipeline.xadd(_TOPIC + topic, _fields(_letter(topic, entry).message))
                    pipeline.xdel(_DEAD + topic, one)
                    pipeline.execute()
                    number += 1
        self.statistics.published += number
        return number

    def close(self) -> None:
        self.client.close()


class RedisSubscription:
    """Implements :class:`esper.oona.bus.Subscription`."""

    def __init__(self, bus: RedisBus, topic: str, group: str, consumer: str, redeliver_after_s: float) -> None:
        self._bus, self._client = bus, bus.client
        self._topic, self._key, self._group, self._consumer = topic, _TOPIC + topic, group, consumer
        self._redeliver_after_s = redeliver_after_s
        self._look_again = 0.0  # time.monotonic() of the next look for what others hold

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._bus.asking():
                found = self._overdue(most)
                if len(found) < most:
                    left = max(0.0, min(deadline, self._look_again) - time.monotonic())
                    found += self._unread(most - len(found), 0.0 if found else min(left, _LONGEST_BLOCK_S))
            if found or time.monotonic() >= deadline:
                self._bus.statistics.count(found)
                return found

    def _overdue(self, most: int) -> list[Delivery]:
        """What consumers of the group have held for too long, this one among them."""
        if time.monotonic() < self._look_again:
            return []
        idle_ms = max(1, round(1000 * self._redeliver_after_s))
        try:
            _, entries, gone = self._client.xautoclaim(self._key, self._group, self._consumer, idle_ms, count=most)
        except ResponseError as error:
            self._join_again(error)
            return []
        self._bus.statistics.lost += len(gone)
        if len(entries) < most:
            self._look_again = time.monotonic() + self._redeliver_after_s / 2
        if not entries:
            return []
        first, last = entries[0][0], entries[-1][0]
        held = self._client.xpending_range(self._key, self._group, first, last, 10 * most, self._consumer)
        attempts = {one["message_id"]: one["times_delivered"] for one in held}
        return [_delivery(self._topic, entry, max(2, attempts.get(entry[0], 2))) for entry in entries]

    def _unread(self, most: int, block_s: float) -> list[Delivery]:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.xinfo_stream(self._key)
        pipeline.xinfo_groups(self._key)
        block_ms = max(1, round(1000 * block_s)) if block_s else None
        pipeline.xreadgroup(self._group, self._consumer, {self._key: ">"}, count=most, block=block_ms)
        stream, groups, read = pipeline.execute(raise_on_error=False)
        for answer in (read, stream, groups):
            if isinstance(answer, ResponseError):
                self._join_again(answer)
                return []
            if isinstance(answer, Exception):
                raise answer
        entries = [entry for _, found in read or () for entry in found]
        self._notice_gap(stream, groups, entries)
        return [_delivery(self._topic, entry) for entry in entries if entry[1]]

    def _notice_gap(self, stream: dict[str, Any], groups: list[dict[str, Any]], entries: "list[Entry]") -> None:
        """Count what was trimmed from the stream before this group had read it.

        Redis goes on counting what the group has read as if nothing were missing, so that is set right.
        """
        (group,) = (one for one in groups if one["name"] == self._group.encode())
        trimmed = stream["entries-added"] - stream["length"]
        if group["entries-read"] is None or group["entries-read"] >= trimmed:
            return
        self._bus.statistics.lost += trimmed - group["entries-read"]
        last = entries[-1][0] if entries else group["last-delivered-id"]
        self._client.xgroup_setid(self._key, self._group, last, entries_read=trimmed + len(entries))

    def _join_again(self, error: ResponseError) -> None:
        """The stream is gone, and with it the group: hear all that has come since."""
        if not str(error).startswith(("NOGROUP", "no such key", "UNBLOCKED")):
            raise error
        self._bus.statistics.wiped += 1
        self._bus.join(self._topic, self._group, "oldest")

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return
        with self._bus.asking():
            self._bus.statistics.acked += self._client.xack(self._key, self._group, *(one.id for one in deliveries))

    def reject(self, delivery: Delivery, reason: str) -> None:
        letter = _fields(delivery.message) | {"group": self._group, "reason": reason, "time": repr(time.time())}
        with self._bus.asking():
            if not self._client.xpending_range(self._key, self._group, delivery.id, delivery.id, 1):
                return  # answered before
            pipeline = self._client.pipeline(transaction=True)
            pipeline.xadd(_DEAD + self._topic, letter)
            pipeline.xack(self._key, self._group, delivery.id)
            pipeline.execute()
        self._bus.statistics.rejected += 1

    def close(self) -> None:
        pass


Entry = tuple[bytes, dict[bytes, bytes]]


def _fields(message: Message) -> dict[Any, Any]:
    headers = {"headers": json.dumps(dict(message.headers))} if message.headers else {}
    return {"key": message.key, "body": message.body, **headers}


def _message(topic: str, fields: dict[bytes, bytes]) -> Message:
    headers = json.loads(fields.get(b"headers", b"{}"))
    return Message(topic, fields.get(b"key", b"").decode(errors="replace"), fields.get(b"body", b""), headers)


def _delivery(topic: str, entry: Entry, attempt: int = 1) -> Delivery:
    return Delivery(_message(topic, entry[1]), entry[0].decode(), attempt)


def _letter(topic: str, entry: Entry) -> DeadLetter:
    fields = entry[1]
    group, reason = (fields.get(name, b"").decode(errors="replace") for name in (b"group", b"reason"))
    return DeadLetter(_message(topic, fields), entry[0].decode(), group, reason, float(fields.get(b"time", b"0")))
