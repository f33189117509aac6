"""What a checkpoint holds, part by part: what is to be loaded is compared with it before anything is changed."""

from dataclasses import asdict
from typing import Any, TypedDict

from torch import Tensor

from esper.checkpoint.packed import Packed
from esper.contracts.reports import FieldReport
from esper.runtime.judging.judge import Measurement
from esper.runtime.judging.weight_mean import WeightMean
from esper.runtime.record.books import Lifecycle
from esper.runtime.trying.replay import Curve
from esper.shards import Shard


class SavedBody(TypedDict):
    """As :meth:`Snapshots.body` gives it; gradients by the keys of :meth:`HostOptimizer.named_parameters`."""

    kinds: dict[str, str]
    topology: dict[str, str]
    model: dict[str, Tensor | Shard]
    extra_state: dict[str, Any]
    grads: dict[str | tuple[str, str] | int, Tensor | Shard]
    optimizer: dict[str, Any]
    others: dict[str, Any]


class SavedRandom(TypedDict):
    """The random streams."""

    torch: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any


class SavedClock(TypedDict):
    """Where training stands."""

    scheduler: Any
    random: SavedRandom
    step: int
    peak_lr: float
    epoch: int
    rates: list[float] | None


class SavedCapture(TypedDict):
    """As :meth:`Run.keep` gives it."""

    body: SavedBody | Packed
    clock: SavedClock


class SavedEntry(TypedDict):
    """A state to go back to; without a body it has that of the live trial under way."""

    step: int
    returns: int
    live: list[int]
    select_loss: float
    select_metric: float | None
    losses: Tensor
    body: SavedBody | Packed | None
    scheduler: Any
    rates: list[float] | None
    policy: Any
    records: dict[int, "SavedKept"]


class SavedFallback(SavedEntry):
    """One from before an adoption."""

    trial: int | None


class SavedKept(TypedDict):
    """What later looks may change of a lifecycle."""

    looks: int
    is_kept: bool
    gates: dict[str, dict[str, Any]]


class SavedRecovery(TypedDict):
    """States to go back to."""

    good: list[SavedEntry]
    fallbacks: list[SavedFallback]


class SavedKeeping(TypedDict):
    """What is looked after once it was adopted."""

    pending: dict[str, Tensor]
    deadline: int | None
    settled_loss: float | None
    faulty_fossils: list[str]


class SavedEmergency(TypedDict):
    """What was seen of the training losses, and what has followed from emergencies."""

    losses: list[float]
    pending: Tensor | None
    spikes: int
    not_finite: int
    in_a_row: int
    lr_factor: float


class SavedFirstCosts(TypedDict):
    """What a step cost before anything germinated."""

    steps: int
    flops: int
    multiply_adds: int


class SavedObserver(TypedDict):
    """From where drift is measured, and what was told."""

    weights: dict[str, Tensor]
    before: SavedFirstCosts
    has_told: bool


class SavedTracing(TypedDict):
    """What the first step has shown."""

    rows: dict[str, int] | None
    multiply_adds: int
    told: list[list[str]]
    left_out: dict[str, str]


class SavedBooks(TypedDict):
    """As :meth:`Books.to_dict` gives it."""

    run_flops: int
    arm_flops: int
    judging_flops: int
    lifecycles_begun: int
    rounds_begun: int
    trials_begun: int
    judged: int
    train_losses: list[float]
    select_losses: list[float]
    select_metrics: list[float]
    alive: list[Lifecycle]
    reports: list[FieldReport]
    answers: dict[str, dict[str, Any]]


class SavedIdentity(TypedDict):
    """What tells runs apart."""

    facts: dict[str, int]
    num_seeds: dict[str, int]
    strategies: list[str]


class SavedEvent(TypedDict):
    """A line of a log."""

    event: str
    time: float


class SavedCosts(TypedDict):
    """What was counted."""

    counted: dict[str, dict[str, Any]]
    has_told: bool


class SavedBatches(TypedDict):
    """As :meth:`BatchStore.state_dict` gives it."""

    entries: list[dict[str, Any]]
    forms: list[dict[str, Any]]
    blocks: list[Packed]


class SavedWindow(TypedDict):
    """As :meth:`Window.to_dict` gives it."""

    start: SavedCapture
    live: list[int]
    batches: SavedBatches | list[Any]
    settings: list[list[dict[str, Any]] | None]
    flops: list[int]
    modules: list[dict[str, dict[str, Any]]]
    first_loss: Tensor | float | None
    first_threads: int | None
    run_facts: dict[str, dict[str, Any]] | None
    run: SavedCapture | None
    arm_step: int
    curve: Curve


class SavedRound(SavedWindow):
    """As :meth:`Round.to_dict` gives it."""

    number: int
    start_step: int
    end_step: int
    boundaries: int
    candidates: list[int]
    run_mean: WeightMean
    marks: dict[int, WeightMean | Packed]
    twin: Measurement | None
    twin_steps: int | None
    arm: int
    arm_steps: int | None
    arm_mean: WeightMean
    best: dict[str, Any] | None
    beaten: int
    is_at_equal_steps: bool
    run_curve: Curve


class SavedTrial(TypedDict):
    """As :meth:`LiveTrial.to_dict` gives it."""

    number: int
    members: list[int]
    window: SavedWindow | None
    grown: Measurement | None
    variation: dict[int, float | None]


class SavedGrowth(TypedDict):
    """Everything under way beside the training."""

    round: SavedRound | None
    trial: SavedTrial | None
    recovery: SavedRecovery
    keeping: SavedKeeping
    emergency: SavedEmergency
    observer: SavedObserver
    tracing: SavedTracing
    costs: SavedCosts
    edits_batches: bool


class SavedSession(TypedDict):
    """A whole checkpoint. What only the caller's objects understand is theirs to refuse."""

    identity: SavedIdentity
    body: SavedBody
    clock: SavedClock
    books: SavedBooks
    recent: list[Any]
    events: list[SavedEvent]
    growth: SavedGrowth
    losses: tuple[Tensor | float, int, bool]
    loader: Any
    policy: Any


def upgraded(state: Any, format_: int) -> Any:
    """A checkpoint of an older format with what was not remembered then; any other as it is."""
    books, growth = (state.get(name) if isinstance(state, dict) else None for name in ("books", "growth"))
    if format_ > 10 or not isinstance(books, dict) or not isinstance(growth, dict):
        return state
    if isinstance(growth.get("emergency"), dict):
        growth["emergency"] |= {"in_a_row": 0, "lr_factor": 1.0}
    if format_ > 8:
        return state
    if isinstance(growth.get("round"), dict):
        growth["round"] |= {"marks": {}, "twin_steps": None, "is_at_equal_steps": False, "run_curve": asdict(Curve())}
    if format_ == 8:
        return state
    books["answers"] = {}
    if isinstance(growth.get("tracing"), dict):
        growth["tracing"] |= {"left_out": {}}
    if format_ > 6:
        return state
    trial = growth.get("trial")
    for window in (growth.get("round"), trial.get("window") if isinstance(trial, dict) else None):
        if isinstance(window, dict):
            window |= {"modules": [], "first_loss": None, "first_threads": None, "run_facts": None}
    growth |= {"costs": {"counted": {}, "has_told": False}, "edits_batches": False}
    return state
