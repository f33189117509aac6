"""The audit file of a rollout: every decision with its numbers, and all that a rollout remembers.

It only grows, by whole lines of JSON. What a process that was killed left of a line is cut off by the next one that
writes. Where a rollout stands follows from its lines alone, so that there is nothing they could disagree with. The flag
is changed between two lines, that of the decision and ``set``: where the second is missing, the change is made again,
which does no harm.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from esper.contracts.errors import ConfigError
from esper.evaluation.rollout.health import Unit
from esper.evaluation.rollout.plan import Terms, terms_from

AUDIT = "audit.jsonl"
Outcome = Literal["running", "completed", "rolled back"]


@dataclass
class State:
    """Where a rollout stands.

    Args:
        terms: what it is to do.
        began: seconds since 1970.
        step: of the plan, from 0.
        step_began: when the flag was set to its share.
        units: all that is known of runs, in the order in which it became known.
        counted: what is known of which run: names of measures and runs.
        units_before: how many of them were known before this step.
        heard: when runs with the flag on (True) and without it told anything last.
        is_set: whether the flag has been set to what was decided.
        share_before: of the flag, when the last decision was made.
        outcome: a rollout that was taken back stays so.
        why: the last decision's reason.
        last_look: its line; None before the first look.
    """

    terms: Terms
    began: float
    step: int = 0
    step_began: float = 0.0
    units: list[Unit] = field(default_factory=list)
    counted: set[tuple[str, str]] = field(default_factory=set)
    units_before: int = 0
    heard: dict[bool, float] = field(default_factory=dict)
    is_set: bool = False
    share_before: float = 0.0
    outcome: Outcome = "running"
    why: str = ""
    last_look: dict[str, Any] | None = None

    @property
    def percent(self) -> float:
        """Share of models for which the flag is to be on."""
        return 0.0 if self.outcome == "rolled back" else self.terms.plan[self.step]

    def apply(self, line: dict[str, Any]) -> None:
        """Take in a line that follows."""
        match line["event"]:
            case "set":
                self.is_set, self.step_began = True, line["time"]
            case "look" | "taken_back":
                self.why = line["why"]
                if line["event"] == "look":
                    self.last_look = line
                    new = [Unit(**unit) for unit in line["units"]]
                    self.units += new
                    self.counted |= {(unit.measure, unit.run) for unit in new}
                    self.heard |= {name == "on": time for name, time in line["heard"].items()}
                self._decide(line["verdict"])

    def _decide(self, verdict: str) -> None:
        self.share_before = self.percent if verdict in ("promote", "rollback") else self.share_before
        match verdict:
            case "promote":
                self.step, self.is_set, self.units_before = self.step + 1, False, len(self.units)
            case "rollback":
                self.outcome, self.is_set = "rolled back", False
            case "complete":
                self.outcome = "completed"


def read(directory: Path) -> State | None:
    """Where the last rollout of a directory stands; None if there has been none.

    Raises:
        ConfigError: if the file is damaged, or there can be no such directory.
    """
    path = directory / AUDIT
    if directory.is_file():
        raise ConfigError(f"{directory} is a file. Name the directory of a rollout.")
    state = None
    for number, raw in enumerate(_whole(path).splitlines(), start=1):
        try:
            line = json.loads(raw)
            if line["event"] == "started":
                state = State(terms_from(line["terms"]), line["time"], share_before=line["share_before"])
            elif state is not None:
                state.apply(line)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{path} is damaged in line {number}: {error!r}. Nothing was changed. Restore the file, or end this "
                "rollout by 'esper flags set' and begin another one in another directory."
            ) from error
    return state


def write(directory: Path, line: dict[str, Any]) -> None:
    """Append a line; it is on disk when this returns. Whoever writes holds the lock.

    Only its owner reads the file: a bus's URL in it may hold a password.
    """
    path = directory / AUDIT
    encoded = json.dumps(line, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        whole = len(_whole(path))
        os.ftruncate(descriptor, whole)
        written = 0
        while written < len(encoded):
            written += os.pwrite(descriptor, encoded[written:], whole + written)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _whole(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
