"""Runs as they tell a message bus: by heartbeats and alerts."""

import os
import secrets
import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from esper.contracts.errors import BusUnavailableError
from esper.evaluation.rollout.directories import AHEAD_S
from esper.evaluation.rollout.health import Point, RunHealth
from esper.oona.bus import Bus, Message, Subscription, UnreadableError, UntrustedError
from esper.oona.environment import codec
from esper.oona.messages import EmergencyAlert, RunHeartbeat
from esper.oona.url import open_bus

_TOPICS = (RunHeartbeat.topic, EmergencyAlert.topic)
_BATCH = 1000
_LOOK_S = 0.2


@dataclass
class _Run:
    beats: list[RunHeartbeat] = field(default_factory=list)
    trouble: str | None = None
    damage: str | None = None


class RunsOnBus:
    """All runs of which a bus holds something, and those that tell it something while this lives.

    Args:
        url: of the bus.
        environment: signing and large payloads, as for a run.
    """

    def __init__(self, url: str, environment: Mapping[str, str] = os.environ) -> None:
        self._url, self._codec = url, codec(environment)
        self._group = f"rollout-{secrets.token_hex(6)}"
        self._bus: Bus | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._runs: dict[str, _Run] = {}

    def runs(self, flag: str, since: float, known: Container[str]) -> list[RunHealth]:
        """See :class:`esper.evaluation.rollout.health.Source`."""
        try:
            self._hear()
        except BusUnavailableError:
            self._runs.clear()  # the next look begins anew
            self._subscriptions.clear()
            self._bus = None
            raise
        found = [health for name, run in self._runs.items() if name not in known if (health := _told(name, run, flag))]
        return sorted((one for one in found if one.began >= since), key=lambda health: health.began)

    def close(self) -> None:
        """Leave nothing of this reader on the bus, if it answers."""
        if self._bus is None:
            return
        try:
            for topic, subscription in self._subscriptions.items():
                subscription.close()
                self._bus.forget(topic, self._group)
        except BusUnavailableError:
            pass
        finally:
            self._bus.close()

    def _hear(self) -> None:
        for subscription in self._joined():
            while deliveries := subscription.receive(_BATCH, timeout_s=_LOOK_S):
                for delivery in deliveries:
                    self._take(delivery.message)
                subscription.ack(deliveries)

    def _joined(self) -> list[Subscription]:
        if self._bus is None:
            self._bus = open_bus(self._url)
        for topic in _TOPICS:
            if topic not in self._subscriptions:
                self._subscriptions[topic] = self._bus.subscribe(topic, self._group, "rollout", start="oldest")
        return list(self._subscriptions.values())

    def _take(self, message: Message) -> None:
        try:
            body = self._codec.decode(message)
        except UntrustedError:
            return
        except UnreadableError as error:
            run = self._runs.setdefault(message.key, _Run())
            run.damage = run.damage or f"a message cannot be read: {error}"
            return
        run = self._runs.setdefault(message.key, _Run())
        if isinstance(body, RunHeartbeat):
            run.beats.append(body)
        elif isinstance(body, EmergencyAlert):
            run.trouble = run.trouble or f"{body.response} at step {body.step}: {body.reason}"


def _told(name: str, run: _Run, flag: str) -> RunHealth | None:
    """The health of a run; None if it has not told that it has resolved the flag."""
    beats = run.beats
    if not beats or flag not in beats[0].flags:
        return None
    end = next((beat for beat in reversed(beats) if beat.is_finished), None)
    trouble = run.trouble
    if trouble is None and end is not None and end.select_loss is None:
        trouble = "its loss at the end is not finite"
    return RunHealth(
        run=name,
        kind=f"{beats[0].planned_steps} steps",
        is_on=beats[0].flags[flag],
        began=beats[0].time,
        last=beats[-1].time,
        points=tuple(Point(beat.time, beat.step, beat.memory_bytes) for beat in beats),
        is_finished=end is not None,
        loss=None if end is None else end.select_loss,
        trouble=trouble,
        damage=run.damage or _damage(beats),
    )


def _damage(beats: list[RunHeartbeat]) -> str | None:
    if (ahead_s := max(beat.time for beat in beats) - time.time()) > AHEAD_S:
        return f"a heartbeat is from the future: {ahead_s:.0f} s from now"
    for before, after in pairwise(beats):
        if after.time < before.time - AHEAD_S:
            return f"a heartbeat is {before.time - after.time:.0f} s older than the one before it"
    return None
