"""Many runs at once, from a message bus: what ``esper exporter`` knows."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import get_args

from esper.observability.hearing import Hearing
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.series import Sample, Status, samples, status
from esper.oona.bus import Bus
from esper.oona.codec import Codec
from esper.oona.messages import TOPICS, Body, RunEvent, RunHeartbeat

FORGOTTEN_AFTER_S = 3600.0
"""A run that is over, well or not, is forgotten after so long."""

MAX_KNOWN = 2000
"""Runs that are remembered; of more those go that were silent for longest."""

_HEARD = (RunEvent.topic, RunHeartbeat.topic)
_LOOK_S = 15.0


def take(run: RunState, body: RunEvent | RunHeartbeat) -> None:
    """Let a run know what a message tells of it."""
    if isinstance(body, RunEvent):
        run.hear(body.line)
    elif body.time >= (run.last_seen or 0.0):
        run.beat(
            step=body.step,
            planned_steps=body.planned_steps,
            epoch=body.epoch,
            arm=body.arm,
            time=body.time,
            is_stopped=body.is_stopped,
        )


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
        self._lock = threading.Lock()
        self._runs: dict[str, RunState] = {}
        self._held: dict[str, int] = {}
        self._dead_letters: dict[str, int] = {}
        self._unreadable_lines = 0
        self._next_look = 0.0
        self._hearing = Hearing(connect, codec, _HEARD, "exporter", self._take, self._look, tell=tell)

    def follow(self, ending: threading.Event) -> None:
        """Read the bus until ``ending`` is set; a broker that is away is asked again and again.

        Raises:
            BusError: if the bus will never serve us.
        """
        self._hearing.follow(ending)

    def samples(self) -> list[Sample]:
        """All series of now."""
        now = time.time()
        with self._lock:
            self._forget(now)
            runs = list(self._runs.values()) if self._hearing.has_caught_up else []
            counts = Counter(status(run, now) for run in runs)
            found = samples(runs, now)
        found += [Sample("esper_runs", (name,), counts[name]) for name in get_args(Status)]
        found += [Sample("esper_topic_messages", (topic,), count) for topic, count in self._held.items()]
        found += [Sample("esper_topic_dead_letters", (topic,), count) for topic, count in self._dead_letters.items()]
        return [
            *found,
            Sample("esper_exporter_unreadable_total", (), self._hearing.unreadable + self._unreadable_lines),
            Sample("esper_exporter_bus_up", (), float(self._hearing.is_up)),
        ]

    def _take(self, bodies: list[Body]) -> None:
        with self._lock:
            for body in bodies:
                if isinstance(body, RunEvent | RunHeartbeat):
                    run = self._runs.get(body.run_id) or self._runs.setdefault(body.run_id, RunState(body.run_id))
                    before = run.unreadable
                    take(run, body)
                    self._unreadable_lines += run.unreadable - before

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
