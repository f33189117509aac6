"""A log for machines: one JSON object per line."""

import os
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from esper.cli.console.presentation import Closing, Event, Heading, Presentation
from esper.contracts.errors import ConfigError

if TYPE_CHECKING:
    from esper.runtime.session import Session

LEFT_OUT = frozenset({"telemetry"})
"""Events of one value per seed and boundary; they are in ``metrics.jsonl``."""

SHORTENED = {"model": ("modules", "places")}
"""Fields that are as long as the model; they are in ``audit.jsonl``."""

WARNINGS = frozenset({"note", "fault", "emergency", "rollback", "interrupted"})


class MachineLog(Presentation):
    """Prints every event as a JSON object with its own fields, and with ``level`` and ``timestamp`` (ISO 8601, UTC).

    Besides the events of the session there are ``run_begun``, ``control``, ``result``, and what is said in words, with
    a ``text``. Nothing else goes to stdout.

    Raises:
        ConfigError: if structlog is not installed.
    """

    def __init__(self) -> None:
        try:
            import structlog
        except ImportError as error:
            raise ConfigError(
                "--log-format json needs structlog, which is not installed: pip install 'esper-morphogenetic[run]'."
            ) from error
        self._heading: Heading | None = None
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stdout),
            processors=[structlog.processors.add_log_level, _stamp, structlog.processors.JSONRenderer()],
        )

    def begin(self, heading: Heading) -> None:
        self._heading = heading

    def follow(self, session: "Session") -> None: ...

    def __call__(self, event: Event) -> None:
        name = event["event"]
        if name not in LEFT_OUT:
            without = ("event", *SHORTENED.get(name, ()))
            self._write(name, **{key: value for key, value in event.items() if key not in without})

    def say(self, what: str, text: str) -> None:
        self._write(what, text=text)

    def control(self, name: str, done: int, total: int, train_flops: int) -> None:
        self._write("control", name=name, done=done, total=total, train_flops=train_flops)

    def announce_stop(self) -> None:
        os.write(2, b"\nesper: stopping after this step ...\n")  # a log is not safe in a signal handler

    def closing(self, closing: Closing) -> None:
        self._write("result", directory=str(closing.directory), **closing.result)

    def stop(self) -> None: ...

    def _write(self, event: str, **fields: Any) -> None:
        if self._heading is not None:
            heading, self._heading = self._heading, None
            self._write("run_begun", **vars(heading))
        (self._log.warning if event in WARNINGS else self._log.info)(event, **fields)


def _stamp(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What it is and when it happened, which the event may tell itself, stands first."""
    moment = datetime.fromtimestamp(fields.get("time", time.time()), UTC)
    event, level = fields.pop("event"), fields.pop("level")
    return {"event": event, "level": level, "timestamp": moment.isoformat(timespec="milliseconds"), **fields}
