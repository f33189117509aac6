"""The values of all metrics, from what is known of runs. Their number is bounded, whatever grows where."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from esper.contracts.lifecycle import OUTCOMES, State
from esper.contracts.settings.watch import EmergencyResponse
from esper.observability.labels import place_label
from esper.observability.metrics.catalogue import METRICS, RULES
from esper.observability.metrics.distribution import LIFECYCLE_BOUNDS, Distribution
from esper.observability.metrics.fold import OTHER, TOLD, RunState

MAX_RUNS = 200
"""Runs with series of their own: those that told something last. The others are added up as ``other``."""

MAX_LAYERS = 40
"""Layers of a run with series of their own: the first of the model, so that they stay the same."""

SILENT_S = 30.0
"""A run that is not finished and has told nothing for so long is dead: heartbeats come every 5 seconds."""

Status = Literal["running", "finished", "stopped", "dead"]

Value = float | Distribution
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One series of a metric, now.

    Args:
        name: of the metric in the catalogue.
        labels: values of its labels, in the catalogue's order.
        value: a number, or the distribution of a histogram.
    """

    name: str
    labels: Labels
    value: Value


def status(run: RunState, now: float | None) -> Status:
    """How a run is.

    Args:
        run: the run.
        now: in seconds since 1970; None where the run is in this process, and therefore lives.
    """
    if run.is_finished:
        return "finished"
    if run.is_stopped:
        return "stopped"
    is_silent = now is not None and now - (run.last_seen or 0.0) > SILENT_S
    return "dead" if is_silent else "running"


def samples(runs: Iterable[RunState], now: float | None = None) -> list[Sample]:
    """All series of all runs.

    Args:
        runs: what is known of them.
        now: as of :func:`status`.
    """
    by_time = sorted(runs, key=lambda run: run.last_seen or 0.0, reverse=True)
    found = [one for run in by_time[:MAX_RUNS] for one in of_run(run, now)]
    together: dict[tuple[str, Labels], float] = {}
    for run in by_time[MAX_RUNS:]:
        for one in of_run(run, now):
            if METRICS[one.name].adds and not isinstance(one.value, Distribution):
                key = one.name, (OTHER, *(OTHER if name == "layer" else label for name, label in _named(one)))
                together[key] = together.get(key, 0.0) + one.value
    return found + [Sample(name, labels, value) for (name, labels), value in together.items()]


def of_run(run: RunState, now: float | None = None) -> Iterator[Sample]:
    """All series of one run."""
    for parts in (_progress(run, now), _growth(run), _by_layer(run), _counts(run), _process(run), _bus(run)):
        for name, labels, value in parts:
            if value is not None:
                yield Sample(f"esper_{name}", (run.run, *labels), value)


_Part = tuple[str, Labels, Value | None]


def _named(one: Sample) -> Iterable[tuple[str, str]]:
    """Labels of a sample behind its run."""
    return list(zip(METRICS[one.name].labels, one.labels, strict=True))[1:]


def _progress(run: RunState, now: float | None) -> Iterator[_Part]:
    if run.host:
        yield "run_info", (run.host,), 1.0
    yield "run_up", (), float(status(run, now) == "running")
    yield "run_finished", (), float(run.is_finished)
    yield "run_stopped", (), float(run.is_stopped)
    yield "run_last_seen_timestamp_seconds", (), run.last_seen
    yield "planned_steps", (), run.planned_steps
    yield "step", (), run.step
    yield "epoch", (), run.epoch
    yield "train_loss", (), run.train_loss
    yield "select_loss", (), run.select_loss
    yield "select_metric", (), run.select_metric
    yield "losses_not_finite_total", (), run.losses_not_finite
    yield "learning_rate", (), run.lr
    yield "steps_per_second", (), run.steps_per_second
    yield "step_seconds", (), run.step_times
    for kind in TOLD:
        yield "events_total", (kind,), run.kinds[kind]


def _growth(run: RunState) -> Iterator[_Part]:
    yield "host_parameters", (), run.host_parameters
    yield "grown_parameters", (), run.grown_parameters
    states = run.states
    for state in State:
        yield "seeds", (state.name,), states[state.name]
        yield "transitions_total", (state.name,), run.transitions[state.name]
    yield "oldest_lifecycle_steps", (), run.oldest_lifecycle_steps
    yield "state_age_steps", (), run.state_age_steps
    yield "trying", (), float(run.trying is not None)
    for kind in ("round", "live"):
        for result in ("adopted", "refused"):
            yield "rounds_total", (kind, result), run.rounds[kind, result]
    for verdict in ("passed", "failed", "not_tried"):
        yield "candidates_total", (verdict,), run.candidates[verdict]
    for name, value in run.gates.items():
        yield "gate_value", (name,), value
    if run.ended:
        yield "adaptation_success_ratio", (), run.fossilized / run.ended
    for outcome in sorted(OUTCOMES):
        yield "lifecycle_steps", (outcome.name,), run.lifecycle_steps.get(outcome.name, _NONE)
    for purpose, name in (("run", "run"), ("arms", "arm"), ("judging", "judging")):
        yield "flops_total", (purpose,), run.flops.get(name, 0)


_NONE = Distribution(LIFECYCLE_BOUNDS)


def _by_layer(run: RunState) -> Iterator[_Part]:
    shown = dict.fromkeys(list(run.seeds)[:MAX_LAYERS])
    live = {layer_id: one["live"] for layer_id, one in run.grafts.items()}
    for layer_id, one in run.grafts.items():
        if layer_id in shown:
            yield "alpha", (place_label(layer_id),), one["alpha"]
    counted: dict[str, Mapping[str, float]] = {
        "awake_seeds": run.awake_by_layer,
        "live_grafts": live,
        "quarantines_total": run.quarantines,
        "faults_total": run.faults,
    }
    for name, counts in counted.items():
        told = dict.fromkeys(map(place_label, shown), 0.0)
        for layer_id, count in counts.items():
            label = place_label(layer_id) if layer_id in shown else OTHER
            told[label] = told.get(label, 0.0) + count
        for label, count in told.items():
            yield name, (label,), count
    ended: dict[tuple[str, str], float] = {}
    for (layer_id, outcome), count in run.lifecycles.items():
        labels = place_label(layer_id) if layer_id in shown else OTHER, outcome
        ended[labels] = ended.get(labels, 0.0) + count
    for labels, count in ended.items():
        yield "lifecycles_total", labels, count


def _counts(run: RunState) -> Iterator[_Part]:
    yield "rollbacks_total", (), run.kinds["rollback"]
    for response in get_args(EmergencyResponse):
        yield "emergencies_total", (response,), run.emergencies[response]
    for rule in RULES:
        yield "vetoes_total", (rule,), run.vetoes[rule]
    yield "refusals_total", (), run.kinds["refused"]
    for flag, is_on in list(run.flags.items())[:MAX_LAYERS]:
        yield "flag", (flag,), float(is_on)
    if run.flags:
        yield "flags_in_doubt", (), run.flags_in_doubt


def _process(run: RunState) -> Iterator[_Part]:
    yield "checkpoints_total", (), run.kinds["checkpoint"]
    if run.checkpoint is not None:
        yield "checkpoint_timestamp_seconds", (), run.checkpoint.get("time")
        yield "checkpoint_duration_seconds", (), run.checkpoint["seconds"]
        yield "checkpoint_bytes", (), run.checkpoint["bytes"]
    for name in ("memory_bytes", "device_memory_bytes", "device_memory_peak_bytes"):
        yield name, (), run.memory.get(name)
    yield "gpu_utilisation_ratio", (), run.memory.get("gpu_utilisation")


def _bus(run: RunState) -> Iterator[_Part]:
    bus = run.bus
    if bus is None:
        return
    yield "bus_queue", (), bus.get("queue")
    for name in ("published", "dropped", "unsendable", "failures", "dead_letters"):
        yield f"bus_{name}_total", (), bus.get(name)
    for result in ("carried_out", "refused", "repeated"):
        yield "commands_total", (result,), bus.get("commands", {}).get(result, 0)
    for name in ("decisions", "decisions_missed"):
        yield f"{name}_total", (), bus.get(name)
    yield "controller_last_seen_timestamp_seconds", (), bus.get("controller_seen")
