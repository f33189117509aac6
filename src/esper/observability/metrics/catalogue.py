"""Every metric there is: name, kind, unit, labels, meaning, and the field of a run's lines that it comes from.

The page of the docs, the exporter, dashboards, alerts and their checks follow from it.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

Needs = Literal["", "device", "bus", "controller", "exporter", "flags"]

NEEDS: dict[Needs, str] = {
    "": "nothing",
    "device": "a GPU",
    "bus": "a message bus",
    "controller": "a controller elsewhere",
    "exporter": "`esper exporter`",
    "flags": "feature flags",
}
"""What a metric is only there with."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Args:
        name: begins with ``esper_``; that of a counter ends in ``_total``, one with a unit names it.
        kind: as Prometheus knows it. Counters begin at 0 where a process begins to listen.
        unit: of a value; ``""`` where it is a plain number.
        labels: of every series.
        meaning: what a value says.
        source: the lines and fields that it is made of, or who counts it.
        needs: what it is only there with.
        adds: whether values of several series may be added; only then are those beyond a bound told, as ``other``.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    source: str
    needs: Needs = ""
    adds: bool = True


RUN = ("run",)
LAYER = ("run", "layer")


def _value(
    name: str, unit: str, meaning: str, source: str, labels: tuple[str, ...] = RUN, needs: Needs = "", adds: bool = True
) -> Metric:
    return Metric(f"esper_{name}", "gauge", unit, labels, meaning, source, needs, adds)


def _count(
    name: str, meaning: str, source: str, labels: tuple[str, ...] = RUN, needs: Needs = "", unit: str = ""
) -> Metric:
    return Metric(f"esper_{name}_total", "counter", unit, labels, meaning, source, needs)


def _spread(name: str, unit: str, meaning: str, source: str, labels: tuple[str, ...] = RUN) -> Metric:
    return Metric(f"esper_{name}", "histogram", unit, labels, meaning, source)


_PROGRESS = (
    _value("run_info", "", "1; its labels tell the class of the host.", "model.type", ("run", "host"), adds=False),
    _value(
        "run_up",
        "",
        "1 while the run lives, 0 once it is finished, stopped, or silent for 30 s.",
        "finished; heartbeats",
    ),
    _value("run_finished", "", "1 once the run has ended well.", "finished"),
    _value("run_stopped", "", "1 while the run is stopped on purpose and may go on.", "heartbeats"),
    _value("run_last_seen_timestamp_seconds", "s", "When the run last told anything.", "time of any line", adds=False),
    _value("planned_steps", "steps", "Batches that the run plans.", "model.planned_steps"),
    _value("step", "steps", "Batches done.", "step of epoch and vitals"),
    _value("epoch", "epochs", "Epochs that are over.", "epoch.epoch"),
    _value("train_loss", "", "Mean training loss of the last epoch; NaN if it is not finite.", "epoch", adds=False),
    _value("select_loss", "", "Held-out loss at the last boundary; NaN if not finite.", "epoch.val_loss", adds=False),
    _value("select_metric", "", "The task's metric there.", "epoch.val_metric", adds=False),
    _count("losses_not_finite", "Boundaries at which a loss was not finite.", "epoch.train_loss, epoch.val_loss"),
    _value("learning_rate", "", "Of the optimizer's group that holds the grafts.", "epoch.lr", adds=False),
    _value("steps_per_second", "1/s", "Steps of the run, arms and boundaries in between counted as time.", "vitals"),
    _spread("step_seconds", "s", "Time of a training step on the host, without a wait for the device.", "vitals"),
    _count("events", "Lines that the run has told, by kind; telemetry is not counted.", "event", ("run", "event")),
)

_GROWTH = (
    _value("host_parameters", "", "Parameters of the host.", "model.parameters"),
    _value("grown_parameters", "", "Parameters of all fossils and live grafts.", "vitals.grown_parameters"),
    _value("seeds", "", "Seeds by state; within an arm those of the arm.", "model, transition", ("run", "state")),
    _value("awake_seeds", "", "Seeds that are not DORMANT, by layer.", "transition", LAYER),
    _value("live_grafts", "", "Grafts that take part in the forward pass.", "vitals.grafts", LAYER),
    _value("alpha", "", "Mean blending factor of live grafts, 0 to 1.", "vitals.grafts", LAYER, adds=False),
    _count("transitions", "Transitions of seeds, arms included.", "transition.target", ("run", "target")),
    _value("oldest_lifecycle_steps", "steps", "Age of the oldest lifecycle that is under way.", "transition"),
    _value(
        "state_age_steps",
        "steps",
        "How long the seed that is longest in a state from GERMINATED to EVALUATING has been there.",
        "transition",
    ),
    _value("trying", "", "1 while a round or a live trial is under way.", "round_begun, trial_begun"),
    _count("rounds", "Rounds and live trials that ended.", "round_ended, trial_ended", ("run", "trial", "result")),
    _count("candidates", "Candidates by verdict.", "arm_ended, trial_ended, round_ended", ("run", "verdict")),
    _value(
        "gate_value",
        "",
        "What gates were shown last.",
        "arm_ended, trial_ended, keep_look",
        ("run", "value"),
        "",
        False,
    ),
    _count("lifecycles", "Lifecycles that ended.", "field_report.outcome", ("run", "layer", "outcome")),
    _value("adaptation_success_ratio", "", "Share of them that became fossils.", "field_report.outcome", adds=False),
    _spread("lifecycle_steps", "steps", "From germination to outcome.", "field_report", ("run", "outcome")),
    _count("flops", "Training FLOPs.", "epoch.run_flops, arm_flops, judging_flops", ("run", "purpose"), unit="FLOP"),
)

_TROUBLE = (
    _count("rollbacks", "Times that the run went back to an earlier state.", "rollback"),
    _count("emergencies", "Times that the run was harmed.", "emergency.response", ("run", "response")),
    _count("quarantines", "Seeds that were rolled back and must rest.", "transition to ROLLED_BACK", LAYER),
    _count("vetoes", "Commands that the shield refused, by its rule.", "veto.reason", ("run", "rule")),
    _count("refusals", "Commands that were refused otherwise.", "refused"),
    _count("faults", "Times that a place's values were not finite and kept from the host.", "fault", LAYER),
)

_PROCESS = (
    _count("checkpoints", "Checkpoints written.", "checkpoint"),
    _value("checkpoint_timestamp_seconds", "s", "When the last was written.", "time of checkpoint", adds=False),
    _value("checkpoint_duration_seconds", "s", "How long the last took.", "checkpoint.seconds", adds=False),
    _value("checkpoint_bytes", "B", "Size of the last.", "checkpoint.bytes"),
    _value("memory_bytes", "B", "Of the host's memory that the process holds.", "vitals.memory_bytes"),
    _value("device_memory_bytes", "B", "Held by tensors on the device.", "vitals.device_memory_bytes", RUN, "device"),
    _value(
        "device_memory_peak_bytes",
        "B",
        "The most since the process began.",
        "vitals.device_memory_peak_bytes",
        RUN,
        "device",
    ),
    _value(
        "gpu_utilisation_ratio",
        "",
        "Share of time in which the device was busy.",
        "vitals.gpu_utilisation",
        RUN,
        "device",
        False,
    ),
    _value("flag", "", "1 where a feature flag is on.", "flags.flags", ("run", "flag"), "flags", adds=False),
    _value("flags_in_doubt", "", "Flags whose rule or store could not be used.", "flags.flags", RUN, "flags"),
)

_BUS = (
    _value("bus_queue", "", "Lines that wait for the bus.", "vitals.bus.queue", RUN, "bus"),
    _count("bus_published", "Messages that the bus has taken.", "vitals.bus.published", RUN, "bus"),
    _count("bus_dropped", "Lines of telemetry that were dropped.", "vitals.bus.dropped", RUN, "bus"),
    _count("bus_unsendable", "Messages that the bus will never take.", "vitals.bus.unsendable", RUN, "bus"),
    _count("bus_failures", "Times that the bus did not take what it was offered.", "vitals.bus.failures", RUN, "bus"),
    _count("bus_dead_letters", "Commands to the run that could not be read.", "vitals.bus.dead_letters", RUN, "bus"),
    _count(
        "commands",
        "Commands that came over the bus, those of a controller's decisions left out.",
        "vitals.bus.commands",
        ("run", "result"),
        "bus",
    ),
    _count("decisions", "Decisions of a controller elsewhere.", "vitals.bus.decisions", RUN, "controller"),
    _count(
        "decisions_missed", "Decisions that did not come in time.", "vitals.bus.decisions_missed", RUN, "controller"
    ),
    _value(
        "controller_last_seen_timestamp_seconds",
        "s",
        "When it last decided; 0 for never.",
        "vitals.bus.controller_seen",
        RUN,
        "controller",
        False,
    ),
)

_EXPORTER = (
    _value("runs", "", "Runs that are known, by status.", "heartbeats", ("status",), "exporter"),
    _value("topic_messages", "", "Messages that a topic of the bus holds.", "the bus", ("topic",), "exporter"),
    _value("topic_dead_letters", "", "Dead letters of a topic, at most 1000.", "the bus", ("topic",), "exporter"),
    _count(
        "exporter_unreadable", "Messages and lines that the exporter could not read.", "the exporter", (), "exporter"
    ),
    _value("exporter_bus_up", "", "1 while the exporter's bus answers.", "the exporter", (), "exporter"),
)

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Progress": _PROGRESS,
    "Growth": _GROWTH,
    "Trouble": _TROUBLE,
    "The process": _PROCESS,
    "The bus": _BUS,
    "The exporter": _EXPORTER,
}
"""All metrics, by what they are about."""

METRICS: dict[str, Metric] = {one.name: one for section in SECTIONS.values() for one in section}
"""All metrics, by name."""

RULES = (
    *("quarantine", "embargo", "failures", "concurrency", "confidence", "parameters", "memory", "latency", "flops"),
    "other",
)
"""Rules of the shield, as the label ``rule`` names them; ``other`` is a command that does not fit."""
