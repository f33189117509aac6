"""Every lifecycle that a record knows of: where, what, its transitions, and how it ended."""

from dataclasses import dataclass, field
from typing import Any

from esper.contracts.lifecycle import OUTCOMES
from esper.observability.files import Event, Numbered
from esper.observability.labels import graft_label
from esper.observability.record import Record

ENDINGS = frozenset(state.name for state in OUTCOMES)


@dataclass
class LifecycleRecord:
    """What is known of one lifecycle. What was lost with damaged lines is None.

    Args:
        number: of the lifecycle.
        layer_id: its place.
        seed_id: its seed, or ``"all"``.
        candidate: how a round or a live trial described it: blueprint and settings.
        transitions: of the run and of arms, in the order of the log.
        report: its field report.
    """

    number: int
    layer_id: str
    seed_id: int | str
    candidate: Event | None = None
    transitions: list[Event] = field(default_factory=list)
    report: Event | None = None

    @property
    def blueprint(self) -> str | None:
        """Id of the blueprint; unknown before its round begins."""
        known = self.report or self.candidate
        return None if known is None else known["blueprint"]

    @property
    def settings(self) -> dict[str, Any]:
        """Hyper-parameters of the blueprint."""
        if self.report is not None:
            return dict(self.report["settings"])
        names = {"lifecycle", "layer_id", "seed_id", "blueprint"}
        return {name: value for name, value in (self.candidate or {}).items() if name not in names}

    @property
    def label(self) -> str:
        """For a reader."""
        return graft_label(self.layer_id, self.seed_id, self.blueprint)

    @property
    def born_step(self) -> int | None:
        """Step of its germination."""
        if self.report is not None:
            return int(self.report["born_step"])
        return next((one["step"] for one in self.transitions if one["target"] == "GERMINATED"), None)

    @property
    def ended(self) -> Event | None:
        """The transition to its outcome."""
        return next((one for one in self.transitions if one["target"] in ENDINGS), None)

    @property
    def outcome(self) -> str | None:
        """How it ended; None while it is open."""
        if self.report is not None:
            return str(self.report["outcome"])
        return None if self.ended is None else self.ended["target"]

    @property
    def reason(self) -> str | None:
        """Why it ended so."""
        known = self.report or self.ended
        return None if known is None else known["reason"]

    @property
    def in_run(self) -> list[Event]:
        """Transitions of the run itself."""
        return [one for one in self.transitions if one["arm"] is None]


def lifecycles(record: Record) -> list[LifecycleRecord]:
    """All lifecycles, in order of birth."""
    found: dict[int, LifecycleRecord] = {}

    def of(event: Event) -> LifecycleRecord:
        return found.setdefault(
            event["lifecycle"], LifecycleRecord(event["lifecycle"], event["layer_id"], event.get("seed_id", "all"))
        )

    for _, event in record.audit:
        if event["event"] == "transition" and event["lifecycle"] is not None:
            of(event).transitions.append(event)
        for candidate in candidates(event):
            of(candidate).candidate = candidate
        if event["event"] == "field_report":
            of(event).report = event
    for report in (record.result or {}).get("lifecycles", []):
        if of(report).report is None:
            of(report).report = report
    return [found[number] for number in sorted(found)]


def candidates(event: Event) -> list[Event]:
    """Whom a round or live trial tries, if the event begins one."""
    return event["candidates"] if event["event"] in ("round_begun", "trial_begun") else []


def last_step(record: Record) -> int:
    """The last step of the run that is known."""
    lines: list[Numbered] = [*record.audit, *record.epochs, *record.telemetry]
    return max((event["step"] for _, event in lines if isinstance(event.get("step"), int)), default=0)
