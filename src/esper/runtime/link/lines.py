"""What a line of a run's log is on the bus."""

from collections.abc import Callable, Mapping
from typing import Any

from esper.contracts.reports import FieldReport
from esper.oona import messages
from esper.oona.messages import Body, column

Line = Mapping[str, Any]

COLUMNS = ("chunk_variance", "inactive_ratio", "mean_abs_correlation", "gradient_norm")


def bodies(line: Line, run_id: str) -> list[Body]:
    """The messages that tell a line: the line itself unless it is bulky, and what readers of one kind wait for."""
    tell = _KINDS.get(line["event"])
    whole: list[Body] = [] if line["event"] == "telemetry" else [messages.RunEvent(run_id=run_id, line=dict(line))]
    return whole if tell is None else [*whole, *tell(line, run_id)]


def _transition(line: Line, run_id: str) -> list[Body]:
    names = ("step", "epoch", "arm", "layer_id", "source", "target", "version", "lifecycle", "who", "reason", "gates")
    return [messages.SeedTransition(run_id=run_id, seed_ids=line["seed_id"], **{name: line[name] for name in names})]


def _field_report(line: Line, run_id: str) -> list[Body]:
    told = {name: value for name, value in line.items() if name not in ("event", "time", "step")}
    return [messages.FieldReportFiled(run_id=run_id, report=FieldReport(**told))]


def _emergency(line: Line, run_id: str) -> list[Body]:
    told = {name: value for name, value in line.items() if name not in ("event", "time")}
    return [messages.EmergencyAlert(run_id=run_id, **told)]


def _telemetry(line: Line, run_id: str) -> list[Body]:
    found: list[Body] = []
    for layer_id, place in line["places"].items():
        columns = {name: place[name] for name in COLUMNS if place.get(name) is not None}
        if not columns:
            continue
        states = bytearray(len(next(iter(columns.values()))))
        for seed, code in place.get("awake", {}).items():
            states[int(seed)] = int(code)
        found.append(
            messages.LayerHealthReport(
                run_id=run_id,
                step=line["step"],
                epoch=line["epoch"],
                layer_id=layer_id,
                states=bytes(states),
                columns={name: column(_numbers(values)) for name, values in columns.items()},
            )
        )
    return found


def _numbers(values: list[float | None]) -> list[float]:
    """A line holds null where a number is not finite."""
    return [float("nan") if value is None else value for value in values]


_KINDS: dict[str, Callable[[Line, str], list[Body]]] = {
    "transition": _transition,
    "field_report": _field_report,
    "emergency": _emergency,
    "telemetry": _telemetry,
}
