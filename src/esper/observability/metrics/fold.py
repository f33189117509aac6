"""What is known of one run from its lines, whoever brings them: a listener, a directory, or a bus."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esper.contracts.events import EVENTS, STEP_BOUNDS_S
from esper.contracts.lifecycle import State
from esper.observability.metrics.catalogue import RULES
from esper.observability.metrics.distribution import LIFECYCLE_BOUNDS, Distribution
from esper.observability.shapes import NEEDED, OPTIONAL, is_number, misfit

Line = Mapping[str, Any]

CURVE_POINTS = 500
"""Of a curve at most; when there are more every second one goes."""

OTHER = "other"

TOLD = (*(kind for kind in EVENTS if kind != "telemetry"), OTHER)
"""Kinds of lines that are counted; those that are not known are all of one."""

GATE_VALUES = (
    *("twin_z", "gain", "metric_gain", "variation"),
    *("ablation_z", "ablation_gain", "confirm_z", "confirm_p", "confirm_margin"),
)
"""Fields of what gates were shown."""

UNDER_WAY = frozenset(state.name for state in State if State.GERMINATED <= state <= State.EVALUATING)
"""States that lead to a verdict, and that a time-out ends."""


@dataclass
class Awake:
    """A seed, or all of a place as one group, that is not DORMANT.

    Args:
        state: name of its state.
        lifecycle: number of its lifecycle.
        born_step: step of its germination.
        since_step: at which it entered its state.
    """

    state: str
    lifecycle: int | None
    born_step: int
    since_step: int


@dataclass
class Trying:
    """A round or a live trial under way.

    Args:
        kind: ``"round"`` or ``"live"``.
        number: of its kind.
        begun_step: at which it began.
        candidates: as the line of its begin describes them.
        ended: lines of the arms that are over.
    """

    kind: str
    number: int
    begun_step: int
    candidates: list[dict[str, Any]]
    ended: list[Line] = field(default_factory=list)


@dataclass
class Curve:
    """Points of the run's learning curves, at most :data:`CURVE_POINTS`, evenly spread: ``step``, ``train_loss``,
    ``val_loss``, ``val_metric``, ``lr``."""

    points: list[dict[str, float | None]] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, line: Line) -> None:
        """Take in a line ``epoch``."""
        if self._seen % self._every == 0:
            if len(self.points) == CURVE_POINTS:
                self.points, self._every = self.points[::2], 2 * self._every
            self.points.append({name: line[name] for name in ("step", "train_loss", "val_loss", "val_metric", "lr")})
        self._seen += 1


@dataclass
class RunState:
    """One run. Numbers that are not known yet are None; losses that are not finite are NaN.

    A run that goes on from a checkpoint tells some lines again: counts count them again, as a process that starts anew.

    Args:
        run: its id.

    Attributes:
        seeds: of every place.
        awake: by place and seed (a number, or ``"all"``), those that are not DORMANT; without what an arm does to them.
        in_arm: the same of the arm that runs.
        kinds: how many lines of each kind it has told.
        gates: what gates were shown last, by :data:`GATE_VALUES`.
        flags_in_doubt: flags whose evaluation failed, or whose store could not be used.
        last_seen: time of the last line or heartbeat, in seconds since 1970.
        is_stopped: whether the last heartbeat told that the run was stopped on purpose, and nothing came after it.
        last_beat: time of the last heartbeat.
        unreadable: lines that lack what their kind must have.
    """

    run: str
    host: str = ""
    host_parameters: int | None = None
    grown_parameters: int | None = None
    planned_steps: int | None = None
    step: int = 0
    epoch: int = 0
    arm: str | None = None
    train_loss: float | None = None
    select_loss: float | None = None
    select_metric: float | None = None
    lr: float | None = None
    losses_not_finite: int = 0
    curve: Curve = field(default_factory=Curve)
    seeds: dict[str, int] = field(default_factory=dict)
    awake: dict[tuple[str, int | str], Awake] = field(default_factory=dict)
    in_arm: dict[tuple[str, int | str], Awake] = field(default_factory=dict)
    grafts: dict[str, dict[str, Any]] = field(default_factory=dict)
    trying: Trying | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    quarantines: Counter[str] = field(default_factory=Counter)
    lifecycles: Counter[tuple[str, str]] = field(default_factory=Counter)
    lifecycle_steps: dict[str, Distribution] = field(default_factory=dict)
    rounds: Counter[tuple[str, str]] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    gates: dict[str, float] = field(default_factory=dict)
    vetoes: Counter[str] = field(default_factory=Counter)
    emergencies: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    flops: dict[str, int] = field(default_factory=dict)
    step_times: Distribution = field(default_factory=lambda: Distribution(STEP_BOUNDS_S))
    steps_per_second: float | None = None
    memory: dict[str, float | None] = field(default_factory=dict)
    checkpoint: Line | None = None
    bus: Mapping[str, Any] | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    flags_in_doubt: int = 0
    last_seen: float | None = None
    is_finished: bool = False
    is_stopped: bool = False
    last_beat: float = 0.0
    unreadable: int = 0

    def hear(self, line: Line) -> None:
        """Take in a line. One that lacks what its kind must have is only counted, and so is an unknown kind. Telemetry,
        which not every carrier brings, is left aside."""
        kind = line.get("event")
        if kind == "telemetry":
            return
        if (
            not isinstance(kind, str)
            or not is_number(line.get("time", 0.0))
            or misfit(line, NEEDED.get(kind, {}), OPTIONAL.get(kind, {})) is not None
        ):
            self.unreadable += 1
            return
        self.kinds[kind if kind in TOLD else OTHER] += 1
        self.last_seen = line.get("time", self.last_seen)
        self.is_stopped = self.is_stopped and self.last_seen <= self.last_beat  # lines and heartbeats come apart
        if (hear := _HEARD.get(kind)) is not None:
            hear(self, line)

    def beat(
        self, *, step: int, planned_steps: int, epoch: int, arm: str | None, time: float, is_stopped: bool = False
    ) -> None:
        """Take in a heartbeat."""
        self.is_stopped, self.last_beat = is_stopped, time
        self.step, self.planned_steps, self.epoch, self.arm, self.last_seen = step, planned_steps, epoch, arm, time

    @property
    def states(self) -> Counter[str]:
        """How many seeds are in each state; within an arm those of the arm."""
        found: Counter[str] = Counter()
        for (layer_id, seed), one in (self.awake | self.in_arm).items():
            found[one.state] += self.seeds.get(layer_id, 1) if seed == "all" else 1
        found[State.DORMANT.name] = max(0, sum(self.seeds.values()) - found.total())
        return found

    @property
    def awake_by_layer(self) -> Counter[str]:
        """How many seeds of each place are not DORMANT."""
        found: Counter[str] = Counter()
        for layer_id, seed in self.awake | self.in_arm:
            found[layer_id] += self.seeds.get(layer_id, 1) if seed == "all" else 1
        return found

    @property
    def oldest_lifecycle_steps(self) -> int:
        """Age of the oldest lifecycle that is under way; 0 if none is."""
        return max(0, self.step - min((one.born_step for one in self.awake.values()), default=self.step))

    @property
    def state_age_steps(self) -> int:
        """How long a seed on its way to a verdict has been in its state, that of the longest; 0 if none is."""
        entered = (one.since_step for one in self.awake.values() if one.state in UNDER_WAY)
        return max(0, self.step - min(entered, default=self.step))

    @property
    def ended(self) -> int:
        """Lifecycles that are over."""
        return self.lifecycles.total()

    @property
    def fossilized(self) -> int:
        """Those that became fossils."""
        return sum(count for (_, outcome), count in self.lifecycles.items() if outcome == State.FOSSILIZED.name)

    def _model(self, line: Line) -> None:
        self.host, self.host_parameters, self.planned_steps = line["type"], line["parameters"], line["planned_steps"]
        self.is_finished = False
        self.seeds = {place["layer_id"]: place["seeds"] for place in line["places"]}
        self.arm, self.bus = None, None  # what is tried goes on where the run does
        self.in_arm.clear()

    def _epoch(self, line: Line) -> None:
        self.step, self.epoch, self.lr = line["step"], line["epoch"], line["lr"]
        self.train_loss, self.select_loss = _number(line["train_loss"]), _number(line["val_loss"])
        self.select_metric = line["val_metric"]
        self.losses_not_finite += line["train_loss"] is None or line["val_loss"] is None
        self.curve.add(line)
        self._count_flops(line)

    def _count_flops(self, line: Line) -> None:
        self.flops = {name: line[f"{name}_flops"] for name in ("run", "arm", "judging")}

    def _vitals(self, line: Line) -> None:
        self.step, self.arm, self.grown_parameters = line["step"], line["arm"], line["grown_parameters"]
        self.step_times.add_counts(line["step_times"], line["step_seconds"])
        self.steps_per_second = line["steps"] / line["seconds"] if line["seconds"] > 0 else None
        self.grafts = line.get("grafts", self.grafts)
        self.bus = line.get("bus", self.bus)
        names = ("memory_bytes", "device_memory_bytes", "device_memory_peak_bytes", "gpu_utilisation")
        self.memory = {name: line[name] for name in names}

    def _transition(self, line: Line) -> None:
        self.transitions[line["target"]] += 1
        self._count_flops(line)
        key, is_own = (line["layer_id"], line["seed_id"]), line["arm"] is None
        seeds = self.awake if is_own else self.in_arm
        if line["target"] == State.DORMANT.name:
            self.awake.pop(key, None)
            self.in_arm.pop(key, None)
            return
        if is_own:
            self.in_arm.pop(key, None)
        known = seeds.get(key) or self.awake.get(key)
        is_same = known is not None and known.lifecycle == line["lifecycle"]
        born_step = known.born_step if known and is_same else line["step"]
        seeds[key] = Awake(line["target"], line["lifecycle"], born_step, line["step"])
        if is_own and line["target"] == State.ROLLED_BACK.name:
            self.quarantines[line["layer_id"]] += self.seeds.get(line["layer_id"], 1) if key[1] == "all" else 1

    def _field_report(self, line: Line) -> None:
        self.lifecycles[line["layer_id"], line["outcome"]] += 1
        steps = self.lifecycle_steps.setdefault(line["outcome"], Distribution(LIFECYCLE_BOUNDS))
        steps.add(line["ended_step"] - line["born_step"])

    def _round_begun(self, line: Line) -> None:
        self.trying = Trying("round", line["round"], line["step"], line["candidates"])

    def _trial_begun(self, line: Line) -> None:
        self.trying = Trying("live", line["trial"], line["step"], line["candidates"])

    def _arm_ended(self, line: Line) -> None:
        self.in_arm.clear()
        self.candidates["passed" if line["passed"] else "failed"] += 1
        self._keep_gates(line)
        if self.trying is not None:
            told_before = [one for one in self.trying.ended if one["arm"] != line["arm"]]
            self.trying.ended = [*told_before, line]

    def _round_ended(self, line: Line) -> None:
        tried = self.trying
        if tried is not None:
            self.candidates["not_tried"] += len(tried.candidates) - len(tried.ended)
        self._end_trying("round", is_adopted=line["adopted"] is not None)

    def _trial_ended(self, line: Line) -> None:
        if "passed" in line and self.trying is not None:
            self.candidates["passed" if line["passed"] else "failed"] += len(self.trying.candidates)
        self._keep_gates(line)
        self._end_trying("live", is_adopted=bool(line["adopted"]))

    def _end_trying(self, kind: str, *, is_adopted: bool) -> None:
        self.rounds[kind, "adopted" if is_adopted else "refused"] += 1
        self.trying, self.arm = None, None
        self.in_arm.clear()

    def _keep_gates(self, line: Line) -> None:
        self.gates |= {name: line[name] for name in GATE_VALUES if line.get(name) is not None}

    def _veto(self, line: Line) -> None:
        rule = line["reason"].partition(":")[0].lower()
        self.vetoes[rule if rule in RULES else OTHER] += 1

    def _fault(self, line: Line) -> None:
        self.faults[line["layer_id"]] += 1

    def _emergency(self, line: Line) -> None:
        self.emergencies[line["response"]] += 1

    def _rollback(self, line: Line) -> None:
        self.in_arm.clear()

    def _rechunked(self, line: Line) -> None:
        self.seeds[line["layer_id"]] = line["num_seeds"]

    def _checkpoint(self, line: Line) -> None:
        self.checkpoint = line

    def _flags(self, line: Line) -> None:
        self.flags = {name: one["is_on"] for name, one in line["flags"].items()}
        self.flags_in_doubt = sum(one.get("is_in_doubt", False) for one in line["flags"].values())

    def _finished(self, line: Line) -> None:
        self.step, self.is_finished, self.arm = line["step"], True, None


def _number(value: float | None) -> float:
    """A line holds null where a number is not finite."""
    return math.nan if value is None else value


_HEARD: dict[str, Callable[[RunState, Line], None]] = {
    "model": RunState._model,
    "epoch": RunState._epoch,
    "vitals": RunState._vitals,
    "transition": RunState._transition,
    "field_report": RunState._field_report,
    "round_begun": RunState._round_begun,
    "trial_begun": RunState._trial_begun,
    "arm_ended": RunState._arm_ended,
    "round_ended": RunState._round_ended,
    "trial_ended": RunState._trial_ended,
    "keep_look": RunState._keep_gates,
    "veto": RunState._veto,
    "fault": RunState._fault,
    "emergency": RunState._emergency,
    "rollback": RunState._rollback,
    "rechunked": RunState._rechunked,
    "checkpoint": RunState._checkpoint,
    "flags": RunState._flags,
    "finished": RunState._finished,
}
"""What each kind of line changes; others are only counted."""
