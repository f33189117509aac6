"""A log for machines: one JSON object per line."""

import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from esper.cli.console.presentation import Closing, Event, Heading, Presentation
from esper.contracts.errors import ConfigError
from esper.observability.spans import RUN, span_id, span_of

if TYPE_CHECKING:
    from esper.runtime.session import Session

LEFT_OUT = frozenset({"telemetry"})
"""Events of one value per seed and boundary; they are in ``metrics.jsonl``."""

SHORTENED = {"model": ("modules", "places")}
"""Fields that are as long as the model; they are in ``audit.jsonl``."""

WARNINGS = frozenset({"note", "fault", "emergency", "rollback", "interrupted"})


class MachineLog(Presentation):
    """Prints every event as a JSON object with its own fields, and with ``level``, ``timestamp`` (ISO 8601, UTC),
    ``run_id``, and where the run is traced ``trace_id`` and ``span_id``.

    Besides the events of the session there are ``run_begun``, ``control``, ``result``, and what is said in words, with
    a ``text``; so is what libraries log, as ``log``. Nothing else goes to stdout.

    Raises:
        ConfigError: if structlog is not installed.
    """

    def __init__(self) -> None:
        self._log = json_lines()
        self._heading: Heading | None = None
        self._has_begun = False
        self._library = LibraryLines(self._log, self._ids)

    def begin(self, heading: Heading) -> None:
        self._heading = heading
        logging.getLogger().addHandler(self._library)

    def follow(self, session: "Session") -> None: ...

    def __call__(self, event: Event) -> None:
        name = event["event"]
        if name not in LEFT_OUT:
            without = ("event", *SHORTENED.get(name, ()))
            fields = {key: value for key, value in event.items() if key not in without}
            self._write(name, **self._ids(event), **fields)

    def say(self, what: str, text: str, **fields: object) -> None:
        self._write(what, **(self._ids() | fields), text=text)

    def control(self, name: str, done: int, total: int, train_flops: int) -> None:
        self._write("control", **self._ids(), name=name, done=done, total=total, train_flops=train_flops)

    def announce_stop(self) -> None:
        os.write(2, b"\nesper: stopping after this step ...\n")  # a log is not safe in a signal handler

    def closing(self, closing: Closing) -> None:
        self._write("result", **self._ids(), directory=str(closing.directory), **closing.result)

    def stop(self) -> None:
        logging.getLogger().removeHandler(self._library)

    def _ids(self, event: Event | None = None) -> dict[str, Any]:
        """Of the run, and of the span in which something happens."""
        if self._heading is None:
            return {}
        run_id, trace_id = self._heading.run_id, self._heading.trace_id
        if trace_id is None:
            return {"run_id": run_id}
        span = span_id(run_id, RUN) if event is None else span_of(run_id, event)
        return {"run_id": run_id, "trace_id": trace_id, "span_id": span}

    def _write(self, event: str, **fields: Any) -> None:
        if self._heading is not None and not self._has_begun:
            self._has_begun = True
            known = {name: value for name, value in vars(self._heading).items() if value is not None}
            self._write("run_begun", **(self._ids() | known))
        (self._log.warning if event in WARNINGS else self._log.info)(event, **fields)


class LibraryLines(logging.Handler):
    """Writes what libraries log, from warnings on, as lines of the same log.

    Args:
        log: of :func:`json_lines`.
        ids: gives the fields that all lines have.
    """

    def __init__(self, log: Any, ids: Callable[[], dict[str, Any]] = dict) -> None:
        super().__init__(logging.WARNING)
        self._log, self._ids = log, ids

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``."""
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write("log", **self._ids(), logger=record.name, text=record.getMessage())


def json_lines() -> Any:
    """A structlog logger that prints one JSON object a line to stdout.

    Raises:
        ConfigError: if structlog is not installed.
    """
    try:
        import structlog
    except ImportError as error:
        raise ConfigError(
            "--log-format json needs structlog, which is not installed: pip install 'esper-morphogenetic[run]'."
        ) from error
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stdout),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _stamp,
            structlog.processors.JSONRenderer(),
        ],
    )


def _stamp(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What it is and when it happened, which the event may tell itself, stands first."""
    moment = datetime.fromtimestamp(fields.get("time", time.time()), UTC)
    event, level = fields.pop("event"), fields.pop("level")
    return {"event": event, "level": level, "timestamp": moment.isoformat(timespec="milliseconds"), **fields}
