"""Tells a bus what happens in a run, from a thread of its own: a step waits for nothing.

What seeds have sensed is read at boundaries with one stacked read, as for the log; nothing here touches the device.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from esper.contracts.errors import BusError, BusUnavailableError
from esper.oona.bus import Bus, Message
from esper.oona.codec import Codec
from esper.oona.messages import Body, RunHeartbeat
from esper.runtime.link.lines import bodies
from esper.runtime.session import Session

TELEMETRY = "telemetry"
_BATCH = 500
_LOOK_S = 0.05
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


@dataclass(slots=True)
class PublisherStatistics:
    """Counts of a publisher.

    Args:
        published: messages that the bus has taken.
        dropped: lines of telemetry that were dropped, the oldest first, because the bus took none.
        unsendable: messages that the bus will never take.
        failures: times that the bus did not take what it was offered.
    """

    published: int = 0
    dropped: int = 0
    unsendable: int = 0
    failures: int = 0


class TelemetryPublisher:
    """A listener of a session.

    Give it to ``Session(on_event=...)`` or ``session.subscribe``, and let it :meth:`follow` the session.

    Args:
        connect: gives the bus, in this object's thread; where its broker is away it is called again.
        codec: writes the messages.
        run_id: of the run.
        bound: lines of telemetry that may wait. What else happens in a run is little, and never dropped.
        heartbeat_s: between two heartbeats.
        headers: that go along with every message.

    Attributes:
        statistics: what became of it all.
    """

    def __init__(
        self,
        connect: Callable[[], Bus],
        codec: Codec,
        run_id: str,
        *,
        bound: int = 1000,
        heartbeat_s: float = 5.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._connect, self._codec, self._run_id, self._headers = connect, codec, run_id, headers
        self._bus: Bus | None = None
        self._bound, self._heartbeat_s = bound, heartbeat_s
        self.statistics = PublisherStatistics()
        self._telemetry: deque[Mapping[str, Any]] = deque()
        self._kept: deque[Mapping[str, Any] | Body] = deque()
        self._unencoded: deque[Body] = deque()
        self._unsent: list[Message] = []
        self._losses: tuple[float | None, float | None] = None, None
        self._session: Session | None = None
        self._is_finished = self._is_stopped = False
        self._next_heartbeat = 0.0
        self._wake, self._is_closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="esper-publisher", daemon=True)
        self._thread.start()

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the run's log."""
        if line["event"] == TELEMETRY:
            self._telemetry.append(line)
            while len(self._telemetry) > self._bound:
                try:
                    self._telemetry.popleft()
                except IndexError:  # the thread was faster
                    break
                self.statistics.dropped += 1
        else:
            self._kept.append(line)
        self._wake.set()

    @property
    def queue(self) -> int:
        """Lines and messages that wait. Any thread may ask."""
        return len(self._kept) + len(self._telemetry) + len(self._unencoded) + len(self._unsent)

    def put(self, body: Body) -> None:
        """Take a message that must not be lost."""
        self._kept.append(body)
        self._wake.set()

    def follow(self, session: Session) -> None:
        """Tell where this session stands, now and then."""
        self._session = session

    def close(self, within_s: float = 10.0, *, is_stopped: bool = False) -> bool:
        """Publish what waits, as far as the bus takes it in time.

        Args:
            within_s: how long that may take.
            is_stopped: whether the run was stopped on purpose and may go on; the last heartbeat tells it.

        Returns:
            Whether it has taken all.
        """
        self._is_stopped = is_stopped
        self._is_closing.set()
        self._wake.set()
        self._thread.join(within_s)
        return not (self._kept or self._telemetry or self._unencoded or self._unsent)

    def _work(self) -> None:
        try:
            self._publish_until_closed()
        finally:
            if self._bus is not None:
                self._bus.close()

    def _publish_until_closed(self) -> None:
        wait_s = _SHORTEST_WAIT_S
        while True:
            is_last = self._is_closing.is_set()
            try:
                while self._publish_some(is_last=is_last):
                    wait_s = _SHORTEST_WAIT_S
            except BusUnavailableError:
                self.statistics.failures += 1
                if is_last:
                    return
                self._is_closing.wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            except BusError:  # it will never take these: a key without permission
                self.statistics.unsendable += len(self._unsent)
                self._unsent = []
                continue
            if is_last:
                return
            self._wake.wait(_LOOK_S)
            self._wake.clear()

    def _publish_some(self, *, is_last: bool) -> bool:
        """Publish a batch; False if there was nothing."""
        if not self._unsent:
            self._unencoded.extend([] if self._unencoded else self._next(is_last=is_last))
            while self._unencoded:  # a store of large payloads may be away: nothing is taken off before it is encoded
                self._unsent.append(self._codec.encode(self._unencoded[0], self._run_id, self._headers))
                self._unencoded.popleft()
        if not self._unsent:
            return False
        if self._bus is None:
            self._bus = self._connect()
        self._bus.publish_batch(self._unsent)
        self.statistics.published += len(self._unsent)
        self._unsent = []
        return True

    def _next(self, *, is_last: bool) -> list[Body]:
        found: list[Body] = []
        for waiting in (self._kept, self._telemetry):
            while waiting and len(found) < _BATCH:
                one = waiting.popleft()
                found += [one] if isinstance(one, Body) else self._told(one)
        if (
            self._session is not None
            and (time.monotonic() >= self._next_heartbeat or is_last)
            and not self._is_finished
        ):
            self._next_heartbeat = time.monotonic() + self._heartbeat_s
            found.append(self._heartbeat(self._session, is_finished=False, is_stopped=is_last and self._is_stopped))
            self._is_finished = is_last
        return found

    def _told(self, line: Mapping[str, Any]) -> list[Body]:
        if line["event"] == "epoch":
            self._losses = line["train_loss"], line["val_loss"]
            self._next_heartbeat = 0.0
        if line["event"] == "finished" and self._session is not None:
            self._is_finished = True
            return [*bodies(line, self._run_id), self._heartbeat(self._session, is_finished=True)]
        return bodies(line, self._run_id)

    def _heartbeat(self, session: Session, *, is_finished: bool, is_stopped: bool = False) -> RunHeartbeat:
        position = session.position
        train_loss, select_loss = self._losses
        return RunHeartbeat(
            run_id=self._run_id,
            step=position.step,
            planned_steps=position.planned_steps,
            epoch=position.epoch,
            arm=position.arm,
            train_loss=train_loss,
            select_loss=select_loss,
            train_flops=session.train_flops,
            is_finished=is_finished,
            time=time.time(),
            is_stopped=is_stopped,
        )
