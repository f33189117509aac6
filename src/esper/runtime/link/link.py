"""Joins one run to a bus: what happens goes out, commands come in, decisions may come from elsewhere."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from esper.contracts.commands import Handled
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import BusUnavailableError
from esper.oona.environment import codec
from esper.oona.url import open_bus
from esper.runtime.link.commands import ControlCommandHandler
from esper.runtime.link.publisher import TelemetryPublisher
from esper.runtime.link.remote import RemotePolicy
from esper.runtime.session import Session
from esper.tamiyo.heuristic import Policy


class Link:
    """A listener of a session, and its ear.

    Build it before the session, give it to ``Session(on_event=...)``, let it :meth:`follow` the session, and
    :meth:`close` it at the end. A broker that is away, from the start or in between, holds nothing up.

    Args:
        url: of the bus, see :func:`esper.oona.url.open_bus`.
        run_id: of the run; one that is resumed has the same.
        environment: where keys to sign with and the store of large messages are told, see
            :func:`esper.oona.environment.codec`.
        headers: that go along with every message, such as the run's ``traceparent``.
        on_handled: called with every command that came over the bus and was answered, perhaps by another thread.

    Raises:
        BusError: if the URL is none, its library is not installed, or the broker refuses us.
    """

    def __init__(
        self,
        url: str,
        run_id: str,
        environment: Mapping[str, str] = os.environ,
        *,
        headers: Mapping[str, str] | None = None,
        on_handled: Callable[[Handled], None] = lambda handled: None,
    ) -> None:
        self._connect = partial(open_bus, url)
        with suppress(BusUnavailableError):  # later, perhaps
            self._connect().close()
        self._codec = codec(environment)
        self.run_id, self._headers, self._on_handled = run_id, headers, on_handled
        self.publisher = TelemetryPublisher(self._connect, self._codec, run_id, headers=headers)
        self.handler: ControlCommandHandler | None = None
        self._policy: RemotePolicy | None = None

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the run's log."""
        self.publisher(line)

    def policy(
        self,
        config: GrowthConfig,
        timeout_s: float,
        otherwise: Policy | None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> RemotePolicy:
        """One that asks a controller elsewhere; arguments as of :class:`RemotePolicy`."""
        self._policy = RemotePolicy(
            self._connect,
            self._codec,
            self.run_id,
            config,
            timeout_s=timeout_s,
            otherwise=otherwise,
            tell=tell,
            headers=self._headers,
            on_handled=self._on_handled,
        )
        return self._policy

    def follow(self, session: Session, tell: Callable[[str], None] = lambda text: None) -> None:
        """Tell where this session stands, and let it hear commands. Call it once a checkpoint has been loaded.

        Args:
            session: of the run.
            tell: called with a sentence, by another thread, if the bus will never bring commands.
        """
        self.publisher.follow(session)
        session.tell_bus(self.counts)
        self.handler = ControlCommandHandler(
            self._connect, self._codec, self.run_id, session, self.publisher, tell, self._on_handled
        )

    def counts(self) -> dict[str, Any]:
        """What became of messages, commands and decisions since this process began, as ``vitals`` tells it."""
        sent = self.publisher.statistics
        told: dict[str, Any] = {
            "queue": self.publisher.queue,
            "published": sent.published,
            "dropped": sent.dropped,
            "unsendable": sent.unsendable,
            "failures": sent.failures,
        }
        if self.handler is not None:
            came = self.handler.statistics
            told["dead_letters"] = came.unreadable
            told["commands"] = {name: getattr(came, name) for name in ("carried_out", "refused", "repeated")}
        return told if self._policy is None else told | asdict(self._policy.statistics)

    def close(self, within_s: float = 10.0, *, is_stopped: bool = False) -> bool:
        """Take no more commands and publish what waits, as far as the bus takes it in time.

        Args:
            within_s: how long that may take.
            is_stopped: whether the run was stopped on purpose and may go on.

        Returns:
            Whether it has taken all.
        """
        if self.handler is not None:
            self.handler.close(within_s)
        if self._policy is not None:
            self._policy.close()
        return self.publisher.close(within_s, is_stopped=is_stopped)
