"""What goes up: evaluations, what a controller sees, and the record of a finished lifecycle."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

from esper.contracts.commands import SeedId

Layout = Literal["features", "tokens", "signal", "image"]
POSITION_AXES: dict[Layout, int] = {"features": 0, "tokens": 1, "signal": 1, "image": 2}
"""How many axes of positions lie between the batch and the channels."""
"""What lies around the channels: nothing that a graft may use (each row stands for itself), a sequence of tokens (which
may be causal), positions along one axis, or along two."""

WHOLE = "*"
"""Name of the colony of all channels of a model."""

PieceRole = Literal[
    "beside",
    "copy",
    "linear",
    "conv",
    "depthwise",
    "embedding",
    "batch_norm",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "table",
]
"""How a piece of a colony meets a layer of the host."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What ``evaluate(model)`` returns: one entry per held-out sample, always in the same order.

    Args:
        losses: loss of every sample, ``[n]`` (tensor, array or sequence of floats).
        correct: whether each sample was right, ``[n]`` in {0, 1}, or a score of which more is better and whose mean is
            the metric; None if the task has none. For R2 give ``1 - squared error / variance of the targets``.
        groups: ``[n]`` integers; samples that belong together (one patient, one overlapping stretch of text) share a
            number and are never split between the select, gate and confirm parts.
        metric: name of the metric, as reports tell it.
    """

    losses: Any
    correct: Any = None
    groups: Any = None
    metric: str = "accuracy"


def _freeze(report: Any, *names: str) -> None:
    """Make tuples of sequences, so that a report that is kept never changes."""
    for name in names:
        if (value := getattr(report, name)) is not None:
            object.__setattr__(report, name, tuple(value))


@dataclass(frozen=True, slots=True)
class SeedReport:
    """What the seeds of a place have sensed since the last boundary: columns with one entry per seed.

    A column that was not measured is None; the others are tuples, whatever they were given as.

    Args:
        chunk_variance: mean over the chunk's channels of their variance over samples and positions.
        inactive_ratio: share of values that the activation that follows does not let pass.
        mean_abs_correlation: mean absolute correlation of pairs of channels within the chunk; 0 for single channels.
        gradient_norm: root mean square, over samples, positions and channels, of the loss gradient at the chunk.
    """

    chunk_variance: Sequence[float] | None = None
    inactive_ratio: Sequence[float] | None = None
    mean_abs_correlation: Sequence[float] | None = None
    gradient_norm: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _freeze(self, "chunk_variance", "inactive_ratio", "mean_abs_correlation", "gradient_norm")


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """What a copy of a block is made of.

    Args:
        shapes: of its parameters, by name.
        zeroed: names of those that are zero at birth, so that the copy gives what it reads.
        norms: names of its batch norms that keep running statistics, and their channels.
        multiply_adds: of its forward pass, for each row.
    """

    shapes: Sequence[tuple[str, Sequence[int]]]
    zeroed: Sequence[str]
    norms: Sequence[tuple[str, int]] = ()
    multiply_adds: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple((name, tuple(shape)) for name, shape in self.shapes))
        object.__setattr__(self, "norms", tuple((name, channels) for name, channels in self.norms))
        _freeze(self, "zeroed")


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a colony meets one layer of the host.

    A piece that lies ``"beside"`` a module adds to what it writes, as a graft of a single place does; a ``"copy"`` of a
    block runs behind it, on what it wrote. The others widen a layer: they give it new channels, beside a class of the
    host's (those that the host's code treats as one).

    A ``"table"`` is a parameter or buffer that the host's code adds to the channels itself; for new ones there is
    nothing to add.

    Args:
        module: name of the layer or block, or of a table.
        role: ``"beside"``; or what kind of layer is widened.
        inputs: features that the module reads; entries of the table for an embedding.
        outputs: channels that it writes.
        layout: what lies around them.
        positions: tokens, or positions along all axes, of one sample.
        rows: vectors of channels that it wrote in the traced training step; 0 before it.
        reads: width of the class of which it reads new channels; 0 if it reads none.
        writes: width of the class for which it writes new channels; 0 if it writes none.
        source: index of the class that it reads, within the colony.
        target: index of the class that it writes.
        kernel: of a convolution.
        has_scale: whether a norm, or a table, multiplies.
        has_bias: whether what it writes gets a bias.
        groups: of a group norm.
        axis: of a table: where the channels lie, counted from the back; of a copy: 1 or -1.
        copy: of a copy: what it is made of.
        between: positions of which it reads all channels, those of one after those of another; 1 where channels come
            alone, or with all of their own positions.
    """

    module: str
    role: PieceRole
    inputs: int
    outputs: int
    layout: Layout = "features"
    positions: int = 1
    rows: int = 0
    reads: int = 0
    writes: int = 0
    source: int = -1
    target: int = -1
    kernel: Sequence[int] = ()
    has_scale: bool = False
    has_bias: bool = False
    groups: int = 1
    axis: int = -1
    copy: BlockCopy | None = None
    between: int = 1

    def __post_init__(self) -> None:
        _freeze(self, "kernel")

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of ``dataclasses.asdict``."""
        copied = saved.get("copy")
        return cls(**saved | {"copy": None if copied is None else BlockCopy(**copied)})


@dataclass(frozen=True, slots=True)
class PlaceReport:
    """A place at which growth could happen now. Sequences are tuples, whatever they were given as.

    Args:
        layer_id: name of the place.
        kind: ``"model"``, ``"span"``, ``"block"``, ``"layer"`` or ``"colony"``.
        states: state code of every seed.
        is_under_embargo: whether a seed was culled or rolled back and may not germinate yet.
        inputs: features that a graft can read; 0 if the place's input is nothing that a graft can read, so that only
            a graft that reads its own chunk can grow there.
        outputs: channels that the place writes.
        bounds: first channel of every seed's chunk, and the end.
        layout: what lies around the channels that grafts read.
        chunk_layout: what lies around those that they write; the two differ where the host reduces positions.
        positions: tokens, or positions along all axes, of one sample, where grafts read; 1 if unknown.
        host_parameters: parameters of the host modules that the place covers.
        grown_parameters: parameters of the place's fossils and live grafts.
        rows: vectors of channels at which grafts would work in the traced training step (samples times positions).
        seeds: what its seeds have sensed; None without telemetry.
        gradient_noise: standard deviation of the place's gradient norm from step to step, relative to its mean.
        drift: how far the place's host weights have moved since the last good snapshot, relative to their norm.
        is_step: whether it is one of several blocks in a row, such as those of a transformer.
        versions: of every seed, how often its state has changed: what :attr:`Command.version` is compared with. A
            command to all seeds is for the highest of them.
        pieces: of a colony: where it meets the host. Its ``rows`` are 1, and those of its pieces count.
    """

    layer_id: str
    kind: str
    states: Sequence[int]
    is_under_embargo: bool
    inputs: int
    outputs: int
    bounds: Sequence[int]
    layout: Layout = "features"
    chunk_layout: Layout = "features"
    positions: int = 1
    host_parameters: int = 0
    grown_parameters: int = 0
    rows: int = 0
    seeds: SeedReport | None = None
    gradient_noise: float | None = None
    drift: float | None = None
    is_step: bool = False
    versions: Sequence[int] = ()
    pieces: Sequence[Piece] = ()

    def __post_init__(self) -> None:
        _freeze(self, "states", "bounds", "versions", "pieces")

    @property
    def num_seeds(self) -> int:
        """Seeds of the place."""
        return len(self.states)

    @property
    def is_dormant(self) -> bool:
        """Whether every seed is DORMANT, so that a group may germinate."""
        return not any(self.states)


@dataclass(frozen=True)
class Observation:
    """What the controller sees at a boundary. Losses and accuracies are those of the *select* part.

    Sequences are tuples, whatever they were given as: an observation that is kept never changes.

    Args:
        step: optimizer batches done, of ``planned_steps``.
        planned_steps: batches that the run plans.
        epoch: epochs done.
        train_losses: mean training loss of every epoch so far.
        select_losses: mean held-out loss at every epoch boundary so far.
        select_metrics: the accuracy-like metric there; empty if the task has none.
        places: where growth could happen.
        rounds_done: rounds and live trials begun so far.
        active: lifecycles under way from GERMINATED to EVALUATING.
        host_parameters: parameters of the bare host.
        host_multiply_adds: of the bare host's forward pass in the traced training step; 0 if there was none yet.
        grown_parameters: parameters of fossils and live grafts.
        grown_multiply_adds: of their forward pass on that step.
        reports: of all lifecycles that have ended, in order.
        train_flops: all training FLOPs so far, with arms and judging.
        step_flops: mean training FLOPs of a step before anything germinated; 0 if no step was done yet.
        first_multiply_adds: those of ``grown_multiply_adds`` that were there then.
        evaluation_flops: of one evaluation of the model as it is; 0 where ``max_train_flops`` is not set.
        open_evaluations: that grafts which are adopted or on trial in the run itself may still ask for.
        open_arm_steps: that the twin of a live trial under way may still take.
        waiting_multiply_adds: of every candidate that waits for a round, or for the end of its window.
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
    select_metrics: Sequence[float] = ()
    active: int = 0
    host_multiply_adds: int = 0
    grown_multiply_adds: int = 0
    reports: Sequence["FieldReport"] = ()
    train_flops: int = 0
    step_flops: float = 0.0
    first_multiply_adds: int = 0
    evaluation_flops: int = 0
    open_evaluations: int = 0
    open_arm_steps: int = 0
    waiting_multiply_adds: Sequence[int] = ()

    def __post_init__(self) -> None:
        _freeze(self, "train_losses", "select_losses", "places", "select_metrics", "reports", "waiting_multiply_adds")

    @cached_property
    def place_of_targets(self) -> PlaceReport | None:
        """A place that writes one row for each target: none writes fewer. None before the first step."""
        called = [place for place in self.places if place.rows > 0 and place.kind != "colony"]
        return min(called, key=lambda place: place.rows, default=None)


@dataclass(frozen=True, slots=True)
class FieldReport:
    """The record of one finished lifecycle. It never changes afterwards.

    Args:
        lifecycle: number of the lifecycle within the run.
        layer_id: place of the seed.
        seed_id: the seed, or ``"all"``.
        blueprint: id of the blueprint.
        settings: its hyper-parameters.
        strategy: how it was blended in.
        trial: ``"round"`` for an arm of its own, ``"live"`` for the run itself.
        parameters: of the graft.
        born_step: step of its germination.
        ended_step: step of its outcome.
        outcome: name of the final state.
        reason: why it ended so.
        gates: what was measured, by the name of the state that it led to.
        flops: training FLOPs of its arm, and of its training in isolation.
    """

    lifecycle: int
    layer_id: str
    seed_id: SeedId
    blueprint: str
    settings: dict[str, Any]
    strategy: str
    trial: str
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
