"""What goes up: evaluations, what a controller sees, and the record of a finished lifecycle."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluate(model)`` returns: one entry per held-out sample, always in the same order.

    Args:
        losses: loss of every sample, ``[n]`` (tensor, array or sequence of floats).
        correct: whether each sample was right, ``[n]`` in {0, 1} or a score in [0, 1]; None if the task has no such
            metric.
        groups: ``[n]`` integers; samples that belong together (one patient, one overlapping stretch of text) share a
            number and are never split between the select, gate and confirm parts.
    """

    losses: Any
    correct: Any = None
    groups: Any = None


@dataclass(frozen=True, slots=True)
class PlaceReport:
    """A place at which growth could happen now.

    Args:
        layer_id: name of the place.
        kind: ``"model"``, ``"span"``, ``"block"`` or ``"layer"``.
        num_seeds: seeds of the place.
        is_dormant: whether every seed is DORMANT, so that a group may germinate.
        is_under_embargo: whether a seed was culled and may not germinate yet.
        inputs: features that a graft would read.
        outputs: channels that it would write.
        host_parameters: parameters of the host modules that the place covers.
    """

    layer_id: str
    kind: str
    num_seeds: int
    is_dormant: bool
    is_under_embargo: bool
    inputs: int
    outputs: int
    host_parameters: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What the controller sees at an epoch boundary. Losses and accuracies are those of the *select* part.

    Args:
        step: optimizer batches done, of ``planned_steps``.
        planned_steps: batches that the run plans.
        epoch: epochs done.
        train_losses: mean training loss of every epoch so far.
        select_losses: mean held-out loss at every epoch boundary so far.
        places: where growth could happen.
        rounds_done: rounds begun so far.
        host_parameters: parameters of the bare host.
        grown_parameters: parameters of fossils and live grafts.
    """

    step: int
    planned_steps: int
    epoch: int
    train_losses: Sequence[float]
    select_losses: Sequence[float]
    places: Sequence[PlaceReport]
    rounds_done: int
    host_parameters: int
    grown_parameters: int


@dataclass(frozen=True, slots=True)
class FieldReport:
    """The record of one finished lifecycle. It never changes afterwards.

    Args:
        lifecycle: number of the lifecycle within the run.
        layer_id: place of the seed.
        seed_id: the seed, or ``"all"``.
        blueprint: id of the blueprint.
        settings: its hyper-parameters.
        parameters: parameters of the graft.
        born_step: step of its germination.
        ended_step: step of its outcome.
        outcome: name of the final state.
        reason: why it ended so.
        gates: measured values, gate by gate.
        flops: training FLOPs of its arm.
    """

    lifecycle: int
    layer_id: str
    seed_id: int | str
    blueprint: str
    settings: dict[str, Any]
    parameters: int
    born_step: int
    ended_step: int
    outcome: str
    reason: str
    gates: dict[str, Any] = field(default_factory=dict)
    flops: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)
