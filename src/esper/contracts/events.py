"""What a run writes down: one class for each kind of line in ``audit.jsonl`` and ``metrics.jsonl``, with its fields.

Every line also has ``event``, the name of its kind, and ``time``, seconds since 1970. A number that is not finite
is null. Steps are batches of the run; in an arm, those of the run that it replays.
"""

import inspect
import re
import textwrap
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

from esper.contracts.commands import SeedId, SeedIds
from esper.contracts.reports import FieldReport
from esper.contracts.settings.watch import EmergencyResponse

ABSENT: Any = object()
"""Value of a field that a line does not have."""


class Event(Protocol):
    """A line of a log: a dataclass of its fields."""

    name: ClassVar[str]  # stands in its lines
    log: ClassVar[str]  # "audit" or "metrics", of which it is a line
    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The host and its places, before the first step.

    Args:
        step: 0.
        planned_steps: batches that the run plans.
        type: class of the host.
        parameters: of the host.
        modules: of every module of the host: ``name``, ``type``, ``parameters`` (with all beneath).
        places: of every place: ``layer_id``, ``kind``, ``covers`` (names of modules), ``inputs`` and ``outputs``
            (channels), ``layout``, ``seeds`` (how many), ``pieces`` (of a colony: ``module`` and ``role`` of each).
        metric: name of the metric; null if the task has none.
    """

    name: ClassVar[str] = "model"
    log: ClassVar[str] = "audit"
    step: int
    planned_steps: int
    type: str
    parameters: int
    modules: list[dict[str, Any]]
    places: list[dict[str, Any]]
    metric: str | None = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagsResolved:
    """The feature flags of the run: before its first step, and where it goes on under others.

    Args:
        step: of the run; 0 for those with which it began.
        model_id: of the model for which they were resolved.
        flags: by name ``is_on``, ``reason`` and ``is_in_doubt``: its rule failed, or its store could not be used.
    """

    name: ClassVar[str] = "flags"
    log: ClassVar[str] = "audit"
    step: int
    model_id: str
    flags: dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that the user should know.

    Args:
        step: of the run.
        text: a sentence.
    """

    name: ClassVar[str] = "note"
    log: ClassVar[str] = "audit"
    text: str
    step: int = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """Seeds went from one state to another.

    Args:
        step: of the run.
        epoch: epochs that were over.
        arm: name of the arm in which it happened; null in the run itself.
        layer_id: place of the seeds.
        seed_id: the seed, or ``"all"``.
        target: name of the new state.
        who: who asked for it.
        reason: why.
        run_flops: training FLOPs of the run itself by then.
        arm_flops: of all arms, and of training in isolation.
        judging_flops: of the evaluations that judged grafts.
        source: name of the old state.
        version: of the seeds, now.
        lifecycle: number of the lifecycle; null if it was closed before.
        gates: what the gate was shown.
    """

    name: ClassVar[str] = "transition"
    log: ClassVar[str] = "audit"
    step: int
    epoch: int
    arm: str | None
    layer_id: str
    seed_id: SeedId
    target: str
    who: str
    reason: str
    run_flops: int
    arm_flops: int
    judging_flops: int
    source: str
    version: int
    lifecycle: int | None
    gates: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A command was refused, and nothing was changed.

    Args:
        step: of the run.
        epoch: epochs that were over.
        arm: name of the arm that ran; null if none did.
        layer_id: place that the command named.
        seed_id: the seed, ``"all"``, or several seeds.
        target: name of the state that was asked for.
        who: who asked.
        reason: why it was refused.
        run_flops: training FLOPs of the run itself by then.
        arm_flops: of all arms, and of training in isolation.
        judging_flops: of the evaluations that judged grafts.
        asked: the reason that the command gave.
        also: seeds of further places that it named.
    """

    name: ClassVar[str] = "refused"
    log: ClassVar[str] = "audit"
    step: int
    epoch: int
    arm: str | None
    layer_id: str
    seed_id: SeedIds
    target: str
    who: str
    reason: str
    run_flops: int
    arm_flops: int
    judging_flops: int
    asked: str
    also: dict[str, SeedIds] = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Veto(Refused):
    """The shield refused a command."""

    name: ClassVar[str] = "veto"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReportFiled(FieldReport):
    """A lifecycle has ended: its record.

    Args:
        step: of the run.
    """

    name: ClassVar[str] = "field_report"
    log: ClassVar[str] = "audit"
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundBegun:
    """A round begins; the run trains on as the twin of its candidates.

    Args:
        step: at which it was captured.
        round: number of the round, from 1.
        end_step: step at which the arms will run.
        candidates: of every candidate: ``lifecycle``, ``layer_id``, ``seed_id``, ``blueprint``, and its settings.
    """

    name: ClassVar[str] = "round_begun"
    log: ClassVar[str] = "audit"
    step: int
    round: int
    end_step: int
    candidates: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEnded:
    """The arm of a candidate is over and was judged. Losses are means over held-out samples.

    Args:
        step: of the run that the arm came to.
        round: number of the round.
        arm: its name.
        lifecycle: of the candidate.
        steps: that the arm took.
        arm_flops: training FLOPs of the candidate so far.
        twin_select_loss: loss of the twin on the select samples.
        select_loss: loss of the arm there.
        passed: whether it may be adopted.
        verdict: of the gate, in words.
        twin_z: standard errors by which it beat the twin on the gate samples; null if it cannot be told.
        gain: loss of the twin minus that of the arm, on the gate samples.
        gain_se: standard error of the gain.
        has_metric: whether the task has a metric.
        metric_gain: by how much that is above the twin's; null without one.
        gate_loss: loss of the arm on the gate samples.
        twin_gate_loss: loss of the twin there.
        lead: the gain, relative to the twin's loss.
        is_at_equal_steps: whether the arm took as many steps as the twin, as colonies do.
        variation: share of what the graft added that depended on its input, in [0, 1].
        curve: lists of one length: ``steps``, ``flops`` (training FLOPs of the run and all arms by then) and
            ``train_losses`` (mean since the point before).
    """

    name: ClassVar[str] = "arm_ended"
    log: ClassVar[str] = "audit"
    step: int
    round: int
    arm: str | None
    lifecycle: int
    steps: int
    arm_flops: int
    twin_select_loss: float
    select_loss: float
    passed: bool
    verdict: str
    twin_z: float | None
    gain: float | None
    gain_se: float | None
    has_metric: bool
    metric_gain: float | None
    gate_loss: float
    twin_gate_loss: float
    lead: float | None
    is_at_equal_steps: bool
    variation: float | None
    curve: dict[str, list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnded:
    """A round is over.

    Args:
        step: of the run.
        round: number of the round.
        adopted: the candidate that was adopted, as in ``round_begun``; null if none was.
        reason: why it ended so.
    """

    name: ClassVar[str] = "round_ended"
    log: ClassVar[str] = "audit"
    step: int
    round: int
    adopted: dict[str, Any] | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialBegun:
    """A live trial begins: grafts will grow in the run itself.

    Args:
        step: of the run.
        trial: number of the live trial, from 1.
        candidates: as in ``round_begun``.
    """

    name: ClassVar[str] = "trial_begun"
    log: ClassVar[str] = "audit"
    step: int
    trial: int
    candidates: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """A live trial is over. One without a verdict has only the first fields.

    Args:
        step: of the run.
        trial: number of the live trial.
        adopted: those of its grafts that stay, as in ``round_begun``.
        reason: why it ended so.
        passed: whether they stay.
        steps: that the twin took.
        select_loss: loss of the run with the grafts on the select samples.
        twin_select_loss: loss of the twin there.
        twin_z: standard errors by which they beat the twin on the gate samples.
        gain: loss of the twin minus that of the run, on the gate samples.
        gain_se: standard error of the gain.
        has_metric: whether the task has a metric.
        metric_gain: by how much that is above the twin's; null without one.
        gate_loss: loss of the run on the gate samples.
        twin_gate_loss: loss of the twin there.
        curve: of the twin, as in ``arm_ended``.
    """

    name: ClassVar[str] = "trial_ended"
    log: ClassVar[str] = "audit"
    step: int
    trial: int
    adopted: list[dict[str, Any]]
    reason: str
    passed: bool = ABSENT
    steps: int = ABSENT
    select_loss: float = ABSENT
    twin_select_loss: float = ABSENT
    twin_z: float | None = ABSENT
    gain: float | None = ABSENT
    gain_se: float | None = ABSENT
    has_metric: bool = ABSENT
    metric_gain: float | None = ABSENT
    gate_loss: float = ABSENT
    twin_gate_loss: float = ABSENT
    curve: dict[str, list[Any]] = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLook:
    """An adopted graft was looked at again: the run with it against the run without it.

    Args:
        step: of the run.
        lifecycle: of the graft.
        layer_id: its place.
        look: which look it was, from 1; 0 at the end of a run that came to none.
        passed: whether it will be kept.
        ablation_z: standard errors by which the run is better with it, on the gate samples.
        ablation_gain: by how much the loss is lower with it.
        ablation_gain_se: standard error of that.
        is_finite: whether all its parameters are.
        confirm_margin: level minus p-value on the confirm samples; null if it was not tested there.
        confirm_z: standard errors on the confirm samples.
        confirm_level: level of that test.
        confirm_p: p-value of that test, in [0, 1].
    """

    name: ClassVar[str] = "keep_look"
    log: ClassVar[str] = "audit"
    step: int
    lifecycle: int
    layer_id: str
    look: int
    passed: bool
    ablation_z: float | None
    ablation_gain: float | None
    ablation_gain_se: float | None
    is_finite: bool
    confirm_margin: float | None
    confirm_z: float | None = ABSENT
    confirm_level: float = ABSENT
    confirm_p: float | None = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The guard has kept values that are not finite from the host.

    Args:
        step: of the run.
        layer_id: the place.
        lifecycles: numbers of the live grafts that made them; empty if it was a fossil.
    """

    name: ClassVar[str] = "fault"
    log: ClassVar[str] = "audit"
    step: int
    layer_id: str
    lifecycles: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryEnded:
    """After a graft was removed the run has come back to the loss of before, or went back there.

    Args:
        step: of the run.
        recovered: whether it came back by itself.
        select_loss: loss on the select samples now.
        select_loss_before_graft: loss there before the graft.
    """

    name: ClassVar[str] = "recovery"
    log: ClassVar[str] = "audit"
    step: int
    recovered: bool
    select_loss: float
    select_loss_before_graft: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergencyEnded:
    """The run was harmed, and that was ended.

    Args:
        step: of the run.
        reason: the sign that was seen.
        select_loss: loss on the select samples; null if it was not measured.
        good_select_loss: loss there when all was last well; null if it never was.
        response: ``"cull"`` of the graft at fault, ``"rollback"``, ``"lower_lr"``, or ``"stop"``.
        lifecycle: of that graft; null for any other response.
        layer_id: its place; null for any other response.
    """

    name: ClassVar[str] = "emergency"
    log: ClassVar[str] = "audit"
    step: int
    reason: str
    select_loss: float | None
    good_select_loss: float | None
    response: EmergencyResponse
    lifecycle: int | None
    layer_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The run went back to an earlier state.

    Args:
        step: of the run.
        to_step: step of that state.
        reason: why.
        who: who asked for it.
        lifecycles: numbers of those that were live and are not any more.
        select_loss: loss on the select samples in that state.
    """

    name: ClassVar[str] = "rollback"
    log: ClassVar[str] = "audit"
    step: int
    to_step: int
    reason: str
    who: str
    lifecycles: list[int]
    select_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rechunked:
    """The channels of a place were dealt to another number of seeds.

    Args:
        step: of the run.
        layer_id: the place.
        num_seeds: its seeds from now on.
    """

    name: ClassVar[str] = "rechunked"
    log: ClassVar[str] = "audit"
    step: int
    layer_id: str
    num_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run has ended.

    Args:
        step: of the run.
        select_loss: loss on the select samples.
        select_metric: the metric there; null if the task has none.
        train_flops: training FLOPs of the run, of all arms and of the judging.
    """

    name: ClassVar[str] = "finished"
    log: ClassVar[str] = "audit"
    step: int
    select_loss: float
    select_metric: float | None
    train_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """A boundary: the end of an epoch, or so many steps as the configuration says.

    Args:
        epoch: epochs that are over.
        step: of the run.
        lr: learning rate of the optimizer's group that holds the grafts.
        train_loss: mean training loss since the last boundary.
        val_loss: loss on the select samples.
        val_metric: the metric there; null if the task has none.
        run_flops: training FLOPs of the run itself by then.
        arm_flops: of all arms, and of training in isolation.
        judging_flops: of the evaluations that judged grafts.
    """

    name: ClassVar[str] = "epoch"
    log: ClassVar[str] = "metrics"
    epoch: int
    step: int
    lr: float
    train_loss: float
    val_loss: float
    val_metric: float | None
    run_flops: int
    arm_flops: int
    judging_flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryRead:
    """What seeds have sensed since the last boundary; follows its ``epoch``.

    Args:
        epoch: epochs that are over.
        step: of the run.
        places: by place, those of ``chunk_variance``, ``inactive_ratio`` (in [0, 1]), ``mean_abs_correlation`` (in
            [0, 1]) and ``gradient_norm`` that were measured, each a list with a number a seed; and ``awake``, the
            state codes of seeds that are not DORMANT, by their index.
    """

    name: ClassVar[str] = "telemetry"
    log: ClassVar[str] = "metrics"
    epoch: int
    step: int
    places: dict[str, dict[str, Any]]


STEP_BOUNDS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Bounds of the classes in which the times of steps are counted, in seconds; one more class lies above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How the process is doing: at every boundary, and in between not more often than every 10 seconds. A session does
    not keep it, for it tells of the machine and not of the run.

    Args:
        step: of the run.
        arm: name of the arm that runs; null in the run itself.
        seconds: since the line before.
        steps: of the run in that time.
        step_seconds: that they took together, without arms, boundaries and checkpoints.
        step_times: how many of them lie in each class, by ``STEP_BOUNDS_S``. The clock runs on the host: where a
            device works behind it, a step takes as long as its launch, and one that waits pays for those before.
        memory_bytes: that the process holds of the host's memory; null if the system does not tell.
        device_memory_bytes: that its tensors hold of the device's; null without a device.
        device_memory_peak_bytes: the most that they held since the process began.
        gpu_utilisation: share of the last moment in which the device was busy, in [0, 1]; null if it cannot be told.
        grafts: of every place with live grafts: ``live`` (how many) and ``alpha`` (their mean, in [0, 1]); only at
            boundaries.
        grown_parameters: of all fossils and live grafts.
        bus: where the run is on a bus, counts since its process began: ``queue`` (what waits now), ``published``,
            ``dropped``, ``unsendable``, ``failures``, ``dead_letters``, ``commands`` (by what became of them); where a
            controller elsewhere decides, ``decisions``, ``decisions_missed`` and ``controller_seen``, the time of its
            last one in seconds since 1970.
    """

    name: ClassVar[str] = "vitals"
    log: ClassVar[str] = "metrics"
    step: int
    arm: str | None
    seconds: float
    steps: int
    step_seconds: float
    step_times: list[int]
    memory_bytes: int | None
    device_memory_bytes: int | None
    device_memory_peak_bytes: int | None
    gpu_utilisation: float | None
    grown_parameters: int
    grafts: dict[str, dict[str, Any]] = ABSENT
    bus: dict[str, Any] = ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointWritten:
    """A checkpoint was written. A session does not keep it, for the checkpoint cannot hold it.

    Args:
        step: of the run; in an arm, that which it replays.
        seconds: that it took.
        bytes: of its files, those that it shares with the one before among them.
        where: its folder, as seen from the run's directory if it lies there.
        stall_seconds: for which the run waited: all of them, unless it was written in the background.
    """

    name: ClassVar[str] = "checkpoint"
    log: ClassVar[str] = "audit"
    step: int
    seconds: float
    bytes: int
    where: str
    stall_seconds: float


EVENTS: dict[str, type[Event]] = {
    kind.name: kind
    for kind in (
        *(Model, FlagsResolved, Note, Transition, Refused, Veto, FieldReportFiled, RoundBegun, ArmEnded, RoundEnded),
        *(TrialBegun, TrialEnded, KeepLook, Fault, RecoveryEnded, EmergencyEnded, RolledBack, Rechunked, Finished),
        *(Epoch, TelemetryRead, Vitals, CheckpointWritten),
    )
}
"""All kinds, by the name that stands in their lines."""

MEASURED = frozenset({Vitals.name, CheckpointWritten.name})
"""Kinds that tell of the machine: an equal run writes others, at other moments."""


def record(event: Event) -> dict[str, Any]:
    """The line of an event, without its time."""
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"event": event.name, **{name: value for name, value in values.items() if value is not ABSENT}}


def described() -> str:
    """All kinds and their fields as a page of Markdown (``docs/run-directory.md`` holds its output)."""
    return "\n\n".join(_section(kind) for kind in EVENTS.values())


def _section(kind: type[Event]) -> str:
    text, _ = _summary_and_fields(kind)
    meanings = {
        name: meaning for one in reversed(kind.__mro__) for name, meaning in _summary_and_fields(one)[1].items()
    }
    hints = get_type_hints(kind)
    may_miss = {field.name: "may be missing: " for field in fields(kind) if field.default is ABSENT}
    rows = [
        f"| `{name}` | {_kind_of_json(hints[name])} | {may_miss.get(name, '')}{_in_one_line(meanings[name])} |"
        for name in sorted(meanings, key=lambda name: name != "step")
    ]
    table = "\n".join(["| field | JSON | meaning |", "|---|---|---|", *rows])
    return f"### `{kind.name}`\n\nIn `{kind.log}.jsonl`. {_in_one_line(text)}\n\n{table}"


def _summary_and_fields(kind: type) -> tuple[str, dict[str, str]]:
    """What a docstring says of its class, and of each of its fields."""
    text, _, told = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    return text, dict(re.findall(r"^(\w+): (.*(?:\n .*)*)", textwrap.dedent(told), flags=re.MULTILINE))


def _in_one_line(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


_JSON = {int: "number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def _kind_of_json(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "text"
    if get_origin(hint) in (list, tuple, dict):
        return "object" if get_origin(hint) is dict else "list"
    if get_args(hint):
        return " or ".join(dict.fromkeys(map(_kind_of_json, get_args(hint))))
    return _JSON[hint]
