"""Runs as they tell a message bus: the lines of their logs."""

import os
import secrets
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from esper.contracts.errors import BusUnavailableError
from esper.evaluation.rollout.health import RunHealth
from esper.evaluation.rollout.lines import Line, health
from esper.observability.files import is_whole
from esper.oona.bus import Bus, Message, Subscription, UnreadableError, UntrustedError
from esper.oona.environment import codec
from esper.oona.messages import RunEvent
from esper.oona.url import open_bus

_BATCH = 1000
_LOOK_S = 0.2


@dataclass
class _Run:
    lines: list[Line] = field(default_factory=list)
    fault: str | None = None


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
        self._subscription: Subscription | None = None
        self._runs: dict[str, _Run] = {}

    def runs(self, flag: str, since: float, known: Container[str]) -> list[RunHealth]:
        """See :class:`esper.evaluation.rollout.health.Source`."""
        try:
            self._hear()
        except BusUnavailableError:  # the next look begins anew
            bus, self._bus, self._subscription = self._bus, None, None
            self._runs.clear()
            with suppress(BusUnavailableError):
                if bus is not None:
                    bus.close()
            raise
        now = time.time()
        found = (
            health(name, [run.lines], run.fault, flag, now) for name, run in self._runs.items() if name not in known
        )
        return sorted((one for one in found if one is not None and one.began >= since), key=lambda one: one.began)

    def close(self) -> None:
        """Leave nothing of this reader on the bus, if it answers."""
        if self._bus is None or self._subscription is None:
            return
        try:
            with suppress(BusUnavailableError):
                self._subscription.close()
                self._bus.forget(RunEvent.topic, self._group)
        finally:
            self._bus.close()

    def _hear(self) -> None:
        if self._subscription is None:
            self._bus = open_bus(self._url)
            self._bus.forget(RunEvent.topic, self._group)  # else what was heard before an outage would not come again
            self._subscription = self._bus.subscribe(RunEvent.topic, self._group, "rollout", start="oldest")
        while deliveries := self._subscription.receive(_BATCH, timeout_s=_LOOK_S):
            for delivery in deliveries:
                self._take(delivery.message)
            self._subscription.ack(deliveries)

    def _take(self, message: Message) -> None:
        try:
            body = self._codec.decode(message)
        except UntrustedError:
            return
        except UnreadableError as error:
            self._damaged(message.key, f"a message cannot be read: {error}")
            return
        if isinstance(body, RunEvent):
            if is_whole(body.line):
                self._runs.setdefault(message.key, _Run()).lines.append(body.line)
            else:
                self._damaged(
                    message.key, f"a line of the kind {str(body.line.get('event'))[:40]!r} lacks what it must have"
                )

    def _damaged(self, key: str, fault: str) -> None:
        run = self._runs.setdefault(key, _Run())
        run.fault = run.fault or fault
