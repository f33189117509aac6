"""Runs that a message bus tells, and commands to them."""

import json
import secrets
import threading
import time
from array import array
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from esper.contracts.errors import BusUnavailableError, ConfigError, closest
from esper.contracts.events import EVENTS
from esper.observability.files import Event, is_whole
from esper.observability.hearing import Hearing
from esper.observability.labels import place_label
from esper.observability.live.run import MOST_CELLS, Asked, Run
from esper.observability.metrics.fold import RunState
from esper.observability.metrics.over_bus import MAX_KNOWN, take
from esper.observability.record import Lines, Record
from esper.oona.bus import Bus
from esper.oona.codec import Codec
from esper.oona.messages import (
    Body,
    CommandAck,
    GerminationCommand,
    LayerHealthReport,
    RemovalCommand,
    RollbackCommand,
    RunEvent,
    RunHeartbeat,
    values,
)

COMMANDS: dict[str, type[GerminationCommand | RemovalCommand | RollbackCommand]] = {
    "germinate": GerminationCommand,
    "cancel": RemovalCommand,
    "rollback": RollbackCommand,
}
"""What can be asked of a run, by the name that the page gives it."""

_TOPICS = (RunEvent.topic, RunHeartbeat.topic, LayerHealthReport.topic, CommandAck.topic)
_WHOLE_AFTER_S = 1.0
"""Places that tell nothing of a boundary for so long after another one had nothing to tell."""

_OWN_TIMES = ("time", "seconds", "step_times", "step_seconds", "steps")
"""What differs where a run that goes on from a checkpoint tells a line again."""


@dataclass
class BusRun:
    """A run that a bus tells: by lines of its logs, heartbeats, and what the seeds of each place sensed.

    Args:
        id: of the run.
    """

    id: str
    version: int = 0
    generation: int = 0
    name: str = field(init=False)
    state: RunState = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.state = self.id, RunState(self.id)
        self._lines = Lines(MOST_CELLS)
        self._told: set[int] = set()
        self._sensed: Event | None = None
        self._sensed_at = 0.0

    def open(self) -> None:
        """Nothing: what a bus tells cannot be asked for later, so it is always kept."""

    def close(self) -> None:
        """Nothing either."""

    @property
    def record(self) -> Record:
        """What is known of it: never its options nor its result."""
        told = self._lines
        return Record(
            directory=Path(self.id),
            audit=told.audit,
            epochs=told.epochs,
            telemetry=told.telemetry,
            vitals=told.vitals,
            every=told.every,
            is_afar=True,
        )

    def hear(self, body: Body) -> None:
        """Take in a message of the run."""
        self.version += 1
        if isinstance(body, RunEvent):
            self._hear_line(body)
        elif isinstance(body, RunHeartbeat):
            take(self.state, body)
        elif isinstance(body, LayerHealthReport):
            self._sense(body)

    def look(self) -> None:
        """Let what seeds sensed be seen, once all places have told it."""
        if self._sensed is not None and time.monotonic() - self._sensed_at > _WHOLE_AFTER_S:
            self._keep_sensed()
            self.version += 1

    def _hear_line(self, body: RunEvent) -> None:
        line = body.line
        told = hash(json.dumps({name: value for name, value in line.items() if name not in _OWN_TIMES}, sort_keys=True))
        if told in self._told:
            return
        self._told.add(told)
        self.state.hear(line)
        if not is_whole(line):
            return
        if (kind := EVENTS.get(line["event"])) is not None and kind.log == "metrics":
            self._lines.add_metrics((len(self._told), line))
        else:
            self._lines.audit.append((len(self._told), line))

    def _sense(self, body: LayerHealthReport) -> None:
        if self._sensed is not None and self._sensed["step"] != body.step:
            self._keep_sensed()
        if self._sensed is None:
            self._sensed = {"event": "telemetry", "epoch": body.epoch, "step": body.step, "places": {}}
        place: dict[str, Any] = {name: array("d", values(column)) for name, column in body.columns.items()}
        awake = {str(seed): code for seed, code in enumerate(body.states) if code}
        self._sensed["places"][body.layer_id] = {**place, "awake": awake}
        self._sensed_at = time.monotonic()

    def _keep_sensed(self) -> None:
        if self._sensed is not None and all(line["step"] < self._sensed["step"] for _, line in self._lines.telemetry):
            self._lines.add_metrics((0, self._sensed))
        self._sensed = None


class BusRuns:
    """All runs on a bus. One thread of its own reads it.

    Args:
        connect: gives the bus; called again where its broker was away.
        codec: reads and writes the messages.
        tell: called with a sentence where the broker is away.

    Attributes:
        runs: by id.
        sent: the last commands that were sent from here, by run.
    """

    def __init__(self, connect: Callable[[], Bus], codec: Codec, tell: Callable[[str], None]) -> None:
        self._connect, self._codec = connect, codec
        self.lock = threading.RLock()
        self._known: dict[str, BusRun] = {}
        self.sent: dict[str, list[Asked]] = {}
        self._hearing = Hearing(connect, codec, _TOPICS, "watch", self._take, wait_s=0.2, tell=tell)

    def follow(self, ending: threading.Event) -> None:
        """Read the bus until ``ending`` is set.

        Raises:
            BusError: if the bus will never serve us.
        """
        self._hearing.follow(ending)

    @property
    def notes(self) -> list[str]:
        """What a reader must know of all of them."""
        if not self._hearing.is_up:
            return ["The bus does not answer; it is asked again. What is shown is from before."]
        return [] if self._known else ["No run has told anything on this bus yet; one that begins appears here."]

    def look(self, opened: Collection[str]) -> list[Run]:
        """All runs, those that told something last first."""
        with self.lock:
            runs = sorted(self._known.values(), key=lambda run: run.state.last_seen or 0.0, reverse=True)
            self._known = {run.id: run for run in runs[:MAX_KNOWN]}
            for run in runs:
                run.look()
        return list(runs)

    def send(self, action: str, fields: Mapping[str, Any]) -> str:
        """Send a command to a run.

        Args:
            action: one of :data:`COMMANDS`.
            fields: of its message, without id.

        Returns:
            The id of the command.

        Raises:
            ConfigError: if it is no command, or the run is not known, or is over.
            BusUnavailableError: if the bus does not take it.
        """
        if action not in COMMANDS:
            raise ConfigError(f"There is no command {action!r}. {closest(action, COMMANDS)}")
        id_ = f"watch-{secrets.token_hex(8)}"
        try:
            asked = msgspec.convert({"who": "watch", **fields, "command_id": id_}, COMMANDS[action])
        except msgspec.ValidationError as error:
            raise ConfigError(f"This is no command {action}: {error}.") from None
        run = self._known.get(asked.run_id)
        if run is None or run.state.is_finished:
            how = "is over" if run else "is not on this bus"
            raise ConfigError(f"The run {asked.run_id!r} {how}: it takes no commands.")
        where = [] if isinstance(asked, RollbackCommand) else [place_label(asked.layer_id), f"seed {asked.seed_ids}"]
        told = Asked(id_, ", ".join([action, *where]), time.time())
        with self.lock:  # before it is sent: the answer may be quick
            self.sent.setdefault(run.id, []).append(told)
            run.version += 1
        try:
            with closing(self._connect()) as bus:
                bus.publish(self._codec.encode(asked, run.id))
        except BusUnavailableError:
            with self.lock:
                self.sent[run.id].remove(told)
                run.version += 1
            raise
        return id_

    def _take(self, bodies: list[Body]) -> None:
        with self.lock:
            for body in bodies:
                if isinstance(body, CommandAck):
                    self._take_answer(body)
                elif isinstance(body, RunEvent | RunHeartbeat | LayerHealthReport):
                    run = self._known.get(body.run_id) or self._known.setdefault(body.run_id, BusRun(body.run_id))
                    run.hear(body)

    def _take_answer(self, answer: CommandAck) -> None:
        for one in self.sent.get(answer.run_id, []):
            if one.id == answer.command_id and one.is_accepted is None:
                one.is_accepted, one.reason, one.step = answer.accepted, answer.reason, answer.step
                if (
                    run := self._known.get(answer.run_id)
                ) is not None:  # it may be silent for so long that it is forgotten
                    run.version += 1
