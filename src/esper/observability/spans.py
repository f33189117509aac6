"""What a span of a run is, and its id.

A run has one trace, whose id follows from the run's, and so do the ids of its spans: whoever knows the run finds its
trace, and a process that goes on with a run goes on with its trace.
"""

import hashlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]
Attributes = dict[str, str | int | float | bool]

MOST_NOTES = 128
"""Moments that a span keeps, the latest: as many as OpenTelemetry does unless told otherwise."""

RUN, EPOCH, CHECKPOINT, COMMAND, LIFECYCLE = "run", "epoch", "checkpoint", "command", "lifecycle"
ROUND, TRIAL, ARM = "round", "trial", "arm"


def trace_id(run_id: str) -> str:
    """Of the trace of a run: 32 hexadecimal digits."""
    return hashlib.sha256(f"esper run {run_id}".encode()).hexdigest()[:32]


def span_id(run_id: str, kind: str, which: object = "") -> str:
    """Of a span of a run: 16 hexadecimal digits.

    Args:
        run_id: of the run.
        kind: such as :data:`ROUND`.
        which: its number; for what has none, what tells it from all others.
    """
    return hashlib.sha256(f"esper {kind} {which} of {run_id}".encode()).hexdigest()[:16]


def span_of(run_id: str, line: Line) -> str:
    """The id of the span to which a line belongs: that which it ends, or else that in which it happens."""
    match line["event"]:
        case "epoch" | "checkpoint" as kind:
            return span_id(run_id, kind, moment_of(line))
        case "arm_ended":
            return span_id(run_id, ARM, moment_of(line))
        case "round_begun" | "round_ended":
            return span_id(run_id, ROUND, line["round"])
        case "trial_begun" | "trial_ended":
            return span_id(run_id, TRIAL, line["trial"])
    lifecycle = line.get("lifecycle")
    return span_id(run_id, RUN) if lifecycle is None else span_id(run_id, LIFECYCLE, lifecycle)


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened within a span, at a time in seconds since 1970."""

    name: str
    time: float
    attributes: Attributes


@dataclass(slots=True, kw_only=True)
class Span:
    """A time with a name.

    Args:
        kind: what it is a time of; its name.
        id: of the span.
        parent: id of the span of which it is a part; None for the run.
        begin: in seconds since 1970.
        end: likewise, not before ``begin``.
        attributes: what is known of it.
        moments: the latest of what happened in it.
        links: ids of spans of the same trace that it is about.
        error: why it failed; None if it did not.
        is_well: whether it is known to have ended as it should.
    """

    kind: str
    id: str
    parent: str | None
    begin: float
    end: float = 0.0
    attributes: Attributes
    moments: deque[Moment] = field(default_factory=lambda: deque(maxlen=MOST_NOTES))
    links: tuple[str, ...] = ()
    error: str | None = None
    is_well: bool = False

    def ended(self, time: float, **attributes: Any) -> "Span":
        """The same, over by now."""
        self.end = max(self.begin, time)
        self.attributes |= told(attributes)
        return self


def told(values: Mapping[str, Any]) -> Attributes:
    """Attributes of a span: plain values only, each with ``esper.`` before its name."""
    return {f"esper.{name}": value for name, value in values.items() if isinstance(value, str | int | float | bool)}


def moment_of(line: Line) -> str:
    """Tells a line from all others of its kind in a run."""
    return f"{line['step']} {line['time']} {line.get('arm')}"
