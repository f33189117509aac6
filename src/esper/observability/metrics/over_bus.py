"""Many runs at once, from a message bus: what ``esper exporter`` knows."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from esper.contracts.errors import BusUnavailableError
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.series import Sample, samples, status
from esper.oona.bus import Bus, Subscription, UnreadableError
from esper.oona.codec import Codec
from esper.oona.messages import TOPICS, RunEvent, RunHeartbeat

FORGOTTEN_AFTER_S = 3600.0
"""A run that is over, well or not, is forgotten after so long."""

MAX_KNOWN = 2000
"""Runs that are remembered; of more those go that were silent for longest."""

_HEARD = (RunEvent.topic, RunHeartbeat.topic)
_WAIT_S, _LOOK_S = 0.5, 15.0
_MOST = 500


class Runs:
    """All runs on a bus, as their lines and heartbeats tell. One thread reads the bus, others ask for samples.

    It begins with what the topics hold, so that it may be started after the runs; until it has read that it tells of
    none, for half a story looks as if counters rose and runs were dead. What cannot be read is counted, and
    is no dead letter: others may read it.

    Args:
        connect: gives the bus; called again where its broker was away.
        codec: reads the messages.
        tell: called with a sentence where the broker is away, once until it is back.
    """

    def __init__(
        self, connect: Callable[[], Bus], codec: Codec, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self._connect, self._codec, self._tell = connect, codec, tell
        self._lock = threading.Lock()
        self._runs: dict[str, RunState] = {}
        self._unreadable = 0
        self._is_up = self._has_caught_up = False
        self._held: dict[str, int] = {}
        self._dead_letters: dict[str, int] = {}
        self._next_look = 0.0

    def follow(self, ending: threading.Event) -> None:
        """Read the bus until ``ending`` is set; a broker that is away is asked again and again.

        Raises:
            BusError: if the bus will never serve us.
        """
        group = f"exporter-{secrets.token_hex(6)}"
        while not ending.is_set():
            try:
                with self._joined(group) as (bus, subscriptions):
                    self._is_up = True
                    while not ending.is_set():
                        self._look(bus)
                        self._hear(subscriptions)
            except BusUnavailableError as error:
                if self._is_up:
                    self._tell(str(error))
                self._is_up = False
                ending.wait(1.0)

    def samples(self) -> list[Sample]:
        """All series of now."""
        now = time.time()
        with self._lock:
            self._forget(now)
            runs = list(self._runs.values()) if self._has_caught_up else []
            counts = dict.fromkeys(("running", "finished", "dead"), 0)
            for run in runs:
                counts[status(run, now)] += 1
            unreadable = self._unreadable + sum(run.unreadable for run in self._runs.values())
            found = samples(runs, now)
        found += [Sample("esper_runs", (name,), count) for name, count in counts.items()]
        found += [Sample("esper_topic_messages", (topic,), count) for topic, count in self._held.items()]
        found += [Sample("esper_topic_dead_letters", (topic,), count) for topic, count in self._dead_letters.items()]
        return [
            *found,
            Sample("esper_exporter_unreadable_total", (), unreadable),
            Sample("esper_exporter_bus_up", (), float(self._is_up)),
        ]

    @contextmanager
    def _joined(self, group: str) -> Iterator[tuple[Bus, list[Subscription]]]:
        bus = self._connect()
        try:
            subscriptions = [bus.subscribe(topic, group, "one", start="oldest") for topic in _HEARD]
            yield bus, subscriptions
            for topic, subscription in zip(_HEARD, subscriptions, strict=True):
                subscription.close()
                bus.forget(topic, group)
        finally:
            bus.close()

    def _hear(self, subscriptions: list[Subscription]) -> None:
        is_behind = False
        for subscription in subscriptions:
            deliveries = subscription.receive(_MOST, timeout_s=_WAIT_S / len(subscriptions))
            bodies: list[RunEvent | RunHeartbeat] = []
            for delivery in deliveries:
                try:
                    body = self._codec.decode(delivery.message)
                except UnreadableError:
                    self._unreadable += 1
                    continue
                if isinstance(body, RunEvent | RunHeartbeat):
                    bodies.append(body)
            with self._lock:
                for body in bodies:
                    self._take(body)
            subscription.ack(deliveries)
            is_behind |= len(deliveries) == _MOST
        self._has_caught_up |= not is_behind

    def _take(self, body: RunEvent | RunHeartbeat) -> None:
        run = self._runs.setdefault(body.run_id, RunState(body.run_id))
        if isinstance(body, RunEvent):
            run.hear(body.line)
        elif body.time >= (run.last_seen or 0.0):
            run.beat(
                step=body.step,
                planned_steps=body.planned_steps,
                epoch=body.epoch,
                arm=body.arm,
                time=body.time,
            )

    def _look(self, bus: Bus) -> None:
        """How much the topics hold, now and then."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        held = bus.topics()
        known = {topic: held[topic] for topic in TOPICS if topic in held}
        self._dead_letters = {topic: len(bus.dead_letters(topic)) for topic in known}
        self._held = known

    def _forget(self, now: float) -> None:
        """Runs that are over for long, and those beyond the bound."""
        kept = [
            run
            for run in self._runs.values()
            if status(run, now) == "running" or now - (run.last_seen or 0.0) < FORGOTTEN_AFTER_S
        ]
        kept.sort(key=lambda run: run.last_seen or 0.0, reverse=True)
        self._runs = {run.run: run for run in kept[:MAX_KNOWN]}
