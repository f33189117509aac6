"""What goes over the bus: one struct for each kind of message, and the topic it belongs to.

Structs are msgspec's, encoded as msgpack. ``contracts`` stays without dependencies, so they live here. A kind that
changes in what a reader must know gets a higher version; a reader refuses versions that it does not know.
"""

import array
import sys
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from esper.contracts.commands import Answer, Command
from esper.contracts.config import GrowthConfig
from esper.contracts.reports import FieldReport, Observation
from esper.contracts.settings.watch import EmergencyResponse

Name = Annotated[str, Meta(max_length=500)]
Text = Annotated[str, Meta(max_length=10_000)]
Count = Annotated[int, Meta(ge=0)]
Code = Annotated[int, Meta(ge=0, le=255)]
SeedIds = Count | Literal["all"] | Annotated[list[Count], Meta(min_length=1, max_length=1_000_000)]
"""One seed of a layer, all of them as one group, or several, each by itself."""

Column = Annotated[bytes, Meta(description="float32, little-endian, one value a seed")]
Codes = Annotated[bytes, Meta(description="uint8, the state code of each seed")]


class Body(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message's content; each kind has a topic and a version."""

    topic: ClassVar[str]
    schema_version: ClassVar[int] = 1


class LayerHealthReport(Body, frozen=True, kw_only=True):
    """What the seeds of one place have sensed since the last boundary; one message a place and window.

    Args:
        run_id: of the run.
        step: of the run.
        epoch: epochs that are over.
        layer_id: the place.
        states: of every seed.
        columns: by name (``chunk_variance``, ``inactive_ratio``, ``mean_abs_correlation``, ``gradient_norm``), those
            that were measured.
    """

    topic = "kasmina.health.layer"
    run_id: Name
    step: Count
    epoch: Count
    layer_id: Name
    states: Codes
    columns: dict[Name, Column]


class SeedTransition(Body, frozen=True, kw_only=True):
    """Seeds went from one state to another; fields as of the event ``transition`` in a run's log."""

    topic = "kasmina.lifecycle"
    run_id: Name
    step: Count
    epoch: Count
    arm: Name | None
    layer_id: Name
    seed_ids: SeedIds
    source: Name
    target: Name
    version: Count
    lifecycle: Count | None
    who: Name
    reason: Text
    gates: dict[str, Any]


class RunHeartbeat(Body, frozen=True, kw_only=True):
    """A run lives, and where it stands; sent at every boundary and now and then between.

    Args:
        run_id: of the run.
        step: batches done, of ``planned_steps``.
        planned_steps: batches that the run plans.
        epoch: epochs that are over.
        arm: name of the arm that runs.
        train_loss: mean since the last boundary; None before the first.
        select_loss: held-out loss at the last boundary.
        train_flops: of the run, of all arms and of the judging.
        is_finished: whether this is the last one.
        is_stopped: whether the run was stopped on purpose, with everything saved, so that none follow until it goes on.
        time: when it was sent, in seconds since 1970.
    """

    topic = "kasmina.lifecycle"
    run_id: Name
    step: Count
    planned_steps: Count
    epoch: Count
    arm: Name | None
    train_loss: float | None
    select_loss: float | None
    train_flops: Count
    is_finished: bool
    time: float
    is_stopped: bool = False


class RunEvent(Body, frozen=True, kw_only=True):
    """A line of a run's logs, as its directory and its listeners have it; all kinds but ``telemetry``.

    Args:
        run_id: of the run.
        line: with ``event``, the name of its kind, and ``time``.
    """

    topic = "run.event"
    run_id: Name
    line: dict[str, Any]


class GerminationCommand(Body, frozen=True, kw_only=True):
    """Let seeds germinate; arguments as of :class:`esper.contracts.commands.Command`."""

    topic = "kasmina.control.command"
    run_id: Name
    command_id: Name
    layer_id: Name
    seed_ids: SeedIds
    blueprint: Name
    settings: dict[str, Any]
    strategy: Name = "fixed_ramp"
    trial: Literal["round", "live"] = "round"
    also: dict[Name, SeedIds] = {}
    version: Count | list[Count] | None = None
    who: Name = "tamiyo"
    reason: Text = ""


class RemovalCommand(Body, frozen=True, kw_only=True):
    """End what seeds are growing."""

    topic = "kasmina.control.command"
    run_id: Name
    command_id: Name
    layer_id: Name
    seed_ids: SeedIds
    target: Literal["CANCELLED", "CULLED"] = "CANCELLED"
    version: Count | list[Count] | None = None
    who: Name = "tamiyo"
    reason: Text = ""


class RollbackCommand(Body, frozen=True, kw_only=True):
    """Let the run go back to its last good state."""

    topic = "kasmina.control.command"
    run_id: Name
    command_id: Name
    who: Name = "tamiyo"
    reason: Text = ""


class CommandAck(Body, frozen=True, kw_only=True):
    """What became of a command; every command gets exactly one.

    Args:
        run_id: of the run.
        command_id: of the command.
        accepted: whether it was carried out.
        reason: why not.
        versions: of the seeds that it named, now.
        step: of the run, when it was answered.
    """

    topic = "kasmina.control.ack"
    run_id: Name
    command_id: Name
    accepted: bool
    reason: Text
    versions: list[Count]
    step: Count


class EmergencyAlert(Body, frozen=True, kw_only=True):
    """A run was harmed, and that was ended; fields as of the event ``emergency``."""

    topic = "kasmina.emergency"
    run_id: Name
    step: Count
    reason: Text
    response: EmergencyResponse
    select_loss: float | None
    good_select_loss: float | None
    lifecycle: Count | None
    layer_id: Name | None


class FieldReportFiled(Body, frozen=True, kw_only=True):
    """A lifecycle has ended: its record."""

    topic = "karn.field_report"
    run_id: Name
    report: FieldReport


class BlueprintProposal(Body, frozen=True, kw_only=True):
    """A blueprint that runs may try.

    Args:
        blueprint: its id.
        settings: its hyper-parameters.
        genome: canonical JSON of what it is made of; empty for one of the catalogue.
        digest: of the genome.
        who: who proposes it.
    """

    topic = "karn.blueprint"
    blueprint: Name
    settings: dict[str, Any]
    genome: str = ""
    digest: Name = ""
    who: Name = "karn"


class ObservationReport(Body, frozen=True, kw_only=True):
    """What a controller elsewhere is to decide about; a run sends one at each boundary.

    All that a decision depends on comes along, so that any process can decide, also one that has just been started.

    Args:
        run_id: of the run.
        number: of the question, from 1.
        config: how the run may grow.
        observation: what there is to see.
        answers: to the commands of the decision before.
        state: of the policy, as the decision before gave it; None for the first.
    """

    topic = "tamiyo.observation"
    run_id: Name
    number: Count
    config: GrowthConfig
    observation: Observation
    answers: list[Answer]
    state: Any


class Decision(Body, frozen=True, kw_only=True):
    """What a controller has decided.

    Args:
        run_id: of the run.
        number: of the question.
        policy: who decided.
        commands: for the run to carry out or refuse.
        state: of the policy, for the next question; None if it remembers nothing.
        remarks: what the policy has to tell the user.
    """

    topic = "tamiyo.decision"
    schema_version = 2
    run_id: Name
    number: Count
    policy: Name
    commands: list[Command]
    state: Any
    remarks: list[Text] = []


KINDS: dict[str, type[Body]] = {
    kind.__name__: kind
    for kind in (
        LayerHealthReport,
        SeedTransition,
        RunHeartbeat,
        RunEvent,
        GerminationCommand,
        RemovalCommand,
        RollbackCommand,
        CommandAck,
        EmergencyAlert,
        FieldReportFiled,
        BlueprintProposal,
        ObservationReport,
        Decision,
    )
}
"""All kinds, by the name that stands in a message's header."""

TOPICS = tuple(sorted({kind.topic for kind in KINDS.values()}))
"""All topics."""


def column(values: "array.array[float] | list[float] | tuple[float, ...]") -> bytes:
    """Values of all seeds as a column."""
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def values(column: bytes) -> list[float]:
    """Inverse of :func:`column`, at the precision of float32.

    Raises:
        ValueError: if it is no whole number of values.
    """
    packed = array.array("f")
    packed.frombytes(column)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def schemas() -> dict[str, Any]:
    """JSON Schema of every kind, for readers in other languages: bytes are base64 there, msgpack's own on the bus."""
    definitions, components = msgspec.json.schema_components(KINDS.values(), ref_template="#/components/schemas/{name}")
    assert len(definitions) == len(KINDS)
    return components
