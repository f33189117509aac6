"""Messages in NATS JetStream, one stream a topic, with a durable pull consumer for each group.

The client is asynchronous: it runs in a thread of its own, and calls wait for it.
"""

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

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

_ANSWER_S = 5.0
_NO_WAIT_S = 0.02  # for a fetch that is not to wait
_IN_FLIGHT = 500  # messages that wait for the server's word at once
_KEY, _HEADERS, _GROUP, _REASON, _TIME = "Esper-Key", "Esper-Headers", "Esper-Group", "Esper-Reason", "Esper-Time"

Result = TypeVar("Result")


def connect(url: str, bound: int) -> "NatsBus":
    """The bus of ``nats://``.

    Raises:
        BusError: if the server refuses user or password, or has no JetStream.
        BusUnavailableError: if it does not answer.
    """
    check_reachable(url, 4222)
    return NatsBus(url.partition("?")[0], bound)


class NatsBus:
    """Implements :class:`esper.oona.bus.Bus`.

    Args:
        url: of the server.
        bound: messages that a topic holds.
    """

    def __init__(self, url: str, bound: int) -> None:
        self._name, self._bound = shown(url), bound
        self.statistics = Statistics()
        self._known: set[str] = set()  # streams that are there
        self._missed: dict[tuple[str, str], int] = {}  # numbers up to which a topic's losses were told to a group
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="esper-nats", daemon=True)
        self._thread.start()
        try:
            self._client, self._jetstream = self.ask(self._connect(url))
        except BusError:
            self._stop()
            raise

    async def _connect(self, url: str) -> tuple[Client, JetStreamContext]:
        async def ignore(error: Exception) -> None:
            """Whoever asks next is told."""

        client = await nats.connect(
            url, connect_timeout=3, allow_reconnect=True, max_reconnect_attempts=-1, error_cb=ignore
        )
        jetstream = client.jetstream(timeout=_ANSWER_S)
        await jetstream.account_info()
        return client, jetstream

    def ask(self, asked: Coroutine[Any, Any, Result], within_s: float = 2 * _ANSWER_S) -> Result:
        """Wait for what runs in the client's thread.

        Raises:
            BusError: if the server will never do that.
            BusUnavailableError: if it does not answer.
        """
        future = asyncio.run_coroutine_threadsafe(asked, self._loop)
        try:
            return future.result(within_s)
        except (TimeoutError, OSError, NatsError) as error:
            future.cancel()
            text = str(error) or type(error).__name__
            if any(word in text.lower() for word in ("authorization", "permission", "not enabled")):
                raise BusError(f"{self._name} refuses us: {text}. Check user, password and JetStream.") from None
            raise BusUnavailableError(f"{self._name} does not serve us: {text}.") from None

    async def _stream(self, name: str) -> None:
        if name in self._known:
            return
        config = StreamConfig(
            name=_stream(name), subjects=[name], max_msgs=self._bound, discard=DiscardPolicy.OLD, allow_direct=True
        )
        try:
            await self._jetstream.stream_info(_stream(name))
        except NotFoundError:
            await self._jetstream.add_stream(config)
        self._known.add(name)

    def publish(self, message: Message) -> None:
        self.publish_batch([message])

    def publish_batch(self, messages: Sequence[Message]) -> None:
        check_messages(messages)
        self.ask(self._publish([(_topic(message.topic), message, {}) for message in messages]), 60.0)
        self.statistics.published += len(messages)

    async def _publish(self, messages: Sequence[tuple[str, Message, dict[str, str]]]) -> None:
        for subject in {subject for subject, _, _ in messages}:
            await self._stream(subject)
        for start in range(0, len(messages), _IN_FLIGHT):
            waiting = []
            for subject, message, further in messages[start : start + _IN_FLIGHT]:
                headers = {_KEY: message.key, _HEADERS: json.dumps(dict(message.headers)), **further}
                waiting.append(await self._jetstream.publish_async(subject, message.body, headers=headers))
            await asyncio.wait_for(asyncio.gather(*waiting), _ANSWER_S)

    def subscribe(
        self, topic: str, group: str, consumer: str, *, start: Start = "new", redeliver_after_s: float = 30.0
    ) -> "NatsSubscription":
        check_joining(topic, group, consumer)
        return NatsSubscription(self, topic, group, start, redeliver_after_s)

    async def join(self, topic: str, group: str, start: Start, redeliver_after_s: float) -> Any:
        """A pull subscription on a group's durable consumer; where both are gone they are made anew."""
        subject = _topic(topic)
        await self._stream(subject)
        try:
            await self._jetstream.consumer_info(_stream(subject), group)
        except NotFoundError:
            config = ConsumerConfig(
                durable_name=group,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=redeliver_after_s,
                deliver_policy=DeliverPolicy.NEW if start == "new" else DeliverPolicy.ALL,
                max_ack_pending=-1,
            )
            await self._jetstream.add_consumer(_stream(subject), config)
        return await self._jetstream.pull_subscribe_bind(group, _stream(subject))

    async def missed(self, topic: str, group: str) -> int | None:
        """How many messages were dropped from a topic before the group could read them; None if both are gone."""
        stream = _stream(_topic(topic))
        try:
            known = await self._jetstream.consumer_info(stream, group)
            first = (await self._jetstream.stream_info(stream)).state.first_seq
        except NotFoundError:
            self._known.discard(_topic(topic))
            return None
        read = known.delivered.stream_seq if known.delivered else 0
        before = max(read, self._missed.get((topic, group), 0))  # what was told is not told again
        self._missed[topic, group] = max(before, first - 1)
        return max(0, first - 1 - before)

    async def flush(self) -> None:
        """Wait until the server has all that was sent."""
        await self._client.flush()

    def forget(self, topic: str, group: str) -> None:
        async def delete() -> None:
            with suppress(NotFoundError):
                await self._jetstream.delete_consumer(_stream(_topic(topic)), group)

        check_topic(topic)
        self.ask(delete())

    def topics(self) -> dict[str, int]:
        async def listed() -> dict[str, int]:
            streams = await self._jetstream.streams_info()
            subjects = {(one.config.subjects or [""])[0]: one.state.messages for one in streams}
            return {
                name.removeprefix("esper.topic."): number
                for name, number in sorted(subjects.items())
                if name.startswith("esper.topic.")
            }

        return self.ask(listed())

    def dead_letters(self, topic: str, most: int = 1000) -> list[DeadLetter]:
        check_topic(topic)
        return self.ask(self._dead_letters(topic, most), 60.0)

    async def _dead_letters(self, topic: str, most: int) -> list[DeadLetter]:
        subject = _dead(topic)
        await self._stream(subject)
        state = (await self._jetstream.stream_info(_stream(subject))).state
        found: list[DeadLetter] = []
        for number in range(state.first_seq, state.last_seq + 1):
            if len(found) == most:
                break
            try:
                raw = await self._jetstream.get_msg(_stream(subject), number, direct=True)
            except NotFoundError:  # requeued
                continue
            headers = raw.headers or {}
            message = _message(topic, raw.data or b"", headers)
            found.append(DeadLetter(message, str(number), headers[_GROUP], headers[_REASON], float(headers[_TIME])))
        return found

    def bury(self, delivery: Delivery, group: str, reason: str) -> None:
        """Put a message among the dead letters of its topic."""
        further = {_GROUP: group, _REASON: " ".join(reason.split()), _TIME: repr(time.time())}
        self.ask(self._publish([(_dead(delivery.message.topic), delivery.message, further)]))

    def requeue(self, topic: str, ids: Sequence[str]) -> int:
        check_topic(topic)

        async def move() -> int:
            letters = {letter.id: letter for letter in await self._dead_letters(topic, 10**9)}
            found = [letters[one] for one in ids if one in letters]
            await self._publish([(_topic(topic), letter.message, {}) for letter in found])
            for letter in found:
                await self._jetstream.delete_msg(_stream(_dead(topic)), int(letter.id))
            return len(found)

        moved = self.ask(move(), 60.0)
        self.statistics.published += moved
        return moved

    def close(self) -> None:
        if self._thread.is_alive():
            try:
                self.ask(self._client.close())
            finally:
                self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class NatsSubscription:
    """Implements :class:`esper.oona.bus.Subscription`."""

    def __init__(self, bus: NatsBus, topic: str, group: str, start: Start, redeliver_after_s: float) -> None:
        self._bus, self._topic, self._group = bus, topic, group
        self._redeliver_after_s = redeliver_after_s
        self._pull = bus.ask(bus.join(topic, group, start, redeliver_after_s))
        self._held: dict[str, tuple[Msg, int]] = {}  # with the attempt that it was

    def receive(self, most: int = 100, timeout_s: float = 0.0) -> list[Delivery]:
        missed = self._bus.ask(self._bus.missed(self._topic, self._group))
        if missed is None:
            self._bus.statistics.wiped += 1
            self._held.clear()
            self._pull = self._bus.ask(self._bus.join(self._topic, self._group, "oldest", self._redeliver_after_s))
        else:
            self._bus.statistics.lost += missed
        found = []
        for message in self._bus.ask(self._fetch(most, timeout_s), timeout_s + 2 * _ANSWER_S):
            number, attempt = str(message.metadata.sequence.stream), message.metadata.num_delivered or 1
            if number in self._held:  # the server does not count a delivery to a request that had just expired
                attempt = max(attempt, self._held[number][1] + 1)
            self._held[number] = message, attempt
            found.append(Delivery(_message(self._topic, message.data, message.headers or {}), number, attempt))
        self._bus.statistics.count(found)
        return found

    async def _fetch(self, most: int, timeout_s: float) -> list[Msg]:
        try:
            return list(await self._pull.fetch(most, timeout=max(timeout_s, _NO_WAIT_S)))
        except TimeoutError:  # the client's own, or a bare one where the time ran out between its two requests
            return []

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        async def answer() -> None:
            for message in held:
                await message.ack()
            await self._bus.flush()

        held = [known[0] for one in deliveries if (known := self._held.pop(one.id, None)) is not None]
        self._bus.ask(answer())
        self._bus.statistics.acked += len(held)

    def reject(self, delivery: Delivery, reason: str) -> None:
        async def end(message: Msg) -> None:
            await message.term()
            await self._bus.flush()

        known = self._held.pop(delivery.id, None)
        if known is None:
            return
        self._bus.bury(delivery, self._group, reason)
        self._bus.ask(end(known[0]))
        self._bus.statistics.rejected += 1

    def close(self) -> None:
        self._bus.ask(self._pull.unsubscribe())


def _topic(topic: str) -> str:
    return f"esper.topic.{topic}"


def _dead(topic: str) -> str:
    return f"esper.dead.{topic}"


def _stream(subject: str) -> str:
    return subject.replace(".", "-")


def _message(topic: str, body: bytes, headers: Mapping[str, str]) -> Message:
    return Message(topic, headers.get(_KEY, ""), body, json.loads(headers.get(_HEADERS, "{}")))
