"""What every line of the logs, and the result, must hold, so that whoever reads a record may rely on it.

A shape is a predicate on a value from JSON. Fields that older versions did not write are optional: they may be
missing, but if they are there they have their shape.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from esper.contracts.events import STEP_BOUNDS_S

Shape = Callable[[Any], bool]


LARGEST = 2**63
"""Whole numbers beyond are damage."""


def is_number(value: Any) -> bool:
    """A finite number; true and false are none."""
    return is_whole(value) or (type(value) is float and math.isfinite(value))


def is_whole(value: Any) -> bool:
    """A whole number."""
    return type(value) is int and abs(value) < LARGEST


def is_text(value: Any) -> bool:
    """Text."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_mapping(value: Any) -> bool:
    """An object."""
    return isinstance(value, dict)


def is_seed(value: Any) -> bool:
    """A seed's number, or "all"."""
    return is_whole(value) or is_text(value)


def is_cost(value: Any) -> bool:
    """A number above 0."""
    return is_number(value) and value > 0


def or_null(shape: Shape) -> Shape:
    """Null, or of that shape."""
    return lambda value: value is None or shape(value)


def list_of(shape: Shape) -> Shape:
    """A list whose items are all of that shape."""
    return lambda value: isinstance(value, list) and all(map(shape, value))


def fields(needed: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """An object with these fields."""
    return lambda value: isinstance(value, dict) and misfit(value, needed, optional or {}) is None


def misfit(value: Mapping[str, Any], needed: Mapping[str, Shape], optional: Mapping[str, Shape]) -> str | None:
    """The first field that is missing or not of its shape; None if all is well."""
    for name, shape in needed.items():
        if name not in value or not shape(value[name]):
            return name
    for name, shape in optional.items():
        if name in value and not shape(value[name]):
            return name
    return None


def is_numbers(value: Any) -> bool:
    """A list of numbers and nulls; fast, for telemetry has millions."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float, type(None)}:
        return False
    present = [one for one in value if one is not None]
    return not present or (min(present) > -1e308 and max(present) < 1e308)


def is_curve(value: Any) -> bool:
    """An object of lists of one length, among them the steps."""
    if not isinstance(value, dict) or not is_numbers(value.get("steps")):
        return False
    length = len(value["steps"])
    return all(is_numbers(column) and len(column) == length for column in value.values())


def is_sensed(value: Any) -> bool:
    """What the seeds of a place have sensed: columns of numbers, and the states of those that are awake."""
    if not isinstance(value, dict):
        return False
    awake = value.get("awake", {})
    if not isinstance(awake, dict) or not all(seed.isdecimal() and is_whole(code) for seed, code in awake.items()):
        return False
    return all(is_numbers(column) for name, column in value.items() if name != "awake")


_number, _where = or_null(is_number), {"layer_id": is_text, "seed_id": is_seed}
_candidate = fields({"lifecycle": is_whole, "blueprint": is_text, **_where})
_flops = {"run_flops": is_number, "arm_flops": is_number, "judging_flops": is_number}
_command = {"step": is_whole, "arm": or_null(is_text), "target": is_text, "who": is_text, "reason": is_text}
_judged = dict.fromkeys(
    ("twin_z", "metric_gain", "gate_loss", "twin_gate_loss", "gain", "gain_se", "variation"), _number
)
_module = fields({"name": is_text, "type": is_text, "parameters": is_whole})
_bus = fields(
    {},
    {
        **dict.fromkeys(("queue", "published", "dropped", "unsendable", "failures", "dead_letters"), is_whole),
        **{"decisions": is_whole, "decisions_missed": is_whole, "controller_seen": _number},
        "commands": lambda value: isinstance(value, dict) and all(map(is_whole, value.values())),
    },
)
_flag = fields({"is_on": is_flag}, {"is_in_doubt": is_flag})
_live_grafts = fields({"live": is_whole, "alpha": is_number})
_place = fields(
    {"layer_id": is_text, "kind": is_text, "covers": list_of(is_text)}
    | dict.fromkeys(("inputs", "outputs", "seeds"), is_whole)
)


def _step_times(value: Any) -> bool:
    """A count for every class of :data:`STEP_BOUNDS_S`, and one above."""
    return list_of(is_whole)(value) and len(value) == len(STEP_BOUNDS_S) + 1


LIFECYCLE: dict[str, Shape] = {
    **{"lifecycle": is_whole, **_where, "blueprint": is_text, "settings": is_mapping, "trial": is_text},
    **{"parameters": is_whole, "born_step": is_whole, "ended_step": is_whole, "outcome": is_text, "reason": is_text},
    **{"gates": is_mapping, "flops": is_number},
}
"""A field report."""

NEEDED: dict[str, dict[str, Shape]] = {
    "model": {
        **{"planned_steps": is_whole, "type": is_text, "parameters": is_whole},
        **{"modules": list_of(_module), "places": list_of(_place)},
    },
    "transition": {
        **_command | _where | _flops,
        **{"source": is_text, "lifecycle": or_null(is_whole), "gates": is_mapping},
    },
    "refused": _command,
    "veto": _command,
    "round_begun": {"step": is_whole, "round": is_whole, "end_step": is_whole, "candidates": list_of(_candidate)},
    "arm_ended": {
        **{"step": is_whole, "round": is_whole, "arm": is_text, "steps": is_whole, "arm_flops": is_number},
        **{"select_loss": _number, "twin_select_loss": _number, "passed": is_flag, "twin_z": _number},
        **{"metric_gain": _number, "gate_loss": _number, "twin_gate_loss": _number},
    },
    "round_ended": {"step": is_whole, "round": is_whole, "adopted": or_null(_candidate), "reason": is_text},
    "trial_begun": {"step": is_whole, "trial": is_whole, "candidates": list_of(_candidate)},
    "trial_ended": {"step": is_whole, "trial": is_whole, "adopted": list_of(_candidate), "reason": is_text},
    "keep_look": {
        **{"step": is_whole, "lifecycle": is_whole, "layer_id": is_text, "look": is_whole, "passed": is_flag},
        **{"ablation_z": _number},
    },
    "field_report": {"step": is_whole, **LIFECYCLE},
    "fault": {"step": is_whole, "layer_id": is_text, "lifecycles": list_of(is_whole)},
    "recovery": {"step": is_whole, "recovered": is_flag},
    "emergency": {"step": is_whole, "reason": is_text, "response": is_text},
    "rollback": {
        **{"step": is_whole, "to_step": is_whole, "reason": is_text, "who": is_text},
        "lifecycles": list_of(is_whole),
    },
    "rechunked": {"step": is_whole, "layer_id": is_text, "num_seeds": is_whole},
    "note": {"text": is_text},
    "flags": {
        **{"step": is_whole, "model_id": is_text},
        "flags": lambda value: isinstance(value, dict) and all(map(_flag, value.values())),
    },
    "finished": {"step": is_whole, "select_loss": _number, "select_metric": _number, "train_flops": is_number},
    "epoch": {
        **{"epoch": is_whole, "step": is_whole, "lr": _number, "train_loss": _number, "val_loss": _number},
        **{"val_metric": _number, **_flops},
    },
    "telemetry": {
        **{"epoch": is_whole, "step": is_whole},
        "places": lambda value: isinstance(value, dict) and all(map(is_sensed, value.values())),
    },
    "vitals": {
        **{"step": is_whole, "arm": or_null(is_text), "seconds": is_number, "steps": is_whole},
        **{"step_seconds": is_number, "step_times": _step_times, "grown_parameters": is_whole},
        **{"memory_bytes": or_null(is_whole), "device_memory_bytes": or_null(is_whole)},
        **{"device_memory_peak_bytes": or_null(is_whole), "gpu_utilisation": _number},
    },
    "checkpoint": {"step": is_whole, "seconds": is_number, "bytes": is_whole, "where": is_text},
}
"""Fields that a line of each kind must have. Kinds that are not listed are let through."""

OPTIONAL: dict[str, dict[str, Shape]] = {
    "model": {"metric": or_null(is_text)},
    "transition": {"seed_id": is_seed},
    "arm_ended": {
        "lifecycle": is_whole,
        "curve": or_null(is_curve),
        "verdict": or_null(is_text),
        **_judged,
    },
    "trial_ended": {
        **_judged | {"select_loss": _number, "twin_select_loss": _number},
        **{"passed": is_flag, "steps": is_whole, "curve": or_null(is_curve)},
    },
    "keep_look": {"ablation_gain": _number, "ablation_gain_se": _number, "confirm_p": _number},
    "emergency": {"layer_id": or_null(is_text), "lifecycle": or_null(is_whole)},
    "recovery": {"select_loss": _number, "select_loss_before_graft": _number},
    "checkpoint": {"stall_seconds": is_number},
    "vitals": {
        "grafts": lambda value: isinstance(value, dict) and all(map(_live_grafts, value.values())),
        "bus": _bus,
    },
}
"""Fields that it may have."""

_row = fields(
    {
        **{"parameters": is_whole, "train_flops": is_cost, "seconds": is_number, "lr": is_number, "schedule": is_text},
        **dict.fromkeys(("val_loss", "val_metric", "test_loss", "test_metric"), _number),
    },
    {
        "curve": or_null(is_curve),
        "test_further": lambda value: isinstance(value, dict) and all(map(_number, value.values())),
    },
)
_interval = or_null(fields({"mean": _number}, {"low": _number, "high": _number}))
_gain = or_null(fields({"loss": _interval}, {"metric": _interval, "units": is_whole}))

PROGRESS_NEEDED: dict[str, Shape] = {
    "seconds": is_number,
    "rows": lambda value: isinstance(value, dict) and all(map(or_null(_row), value.values())),
}
"""Fields of ``progress.json``."""

RESULT_NEEDED: dict[str, Shape] = {
    "task": is_text,
    "rows": fields({"grown": _row, "host_on": or_null(_row), "static": or_null(_row)}),
    "reasons": lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
    "lifecycles": list_of(fields(LIFECYCLE)),
    "probe_flops": is_number,
}
"""Fields of ``result.json``."""

RESULT_OPTIONAL: dict[str, Shape] = {
    **{"seed": is_whole, "host": is_text, "metric": or_null(is_text), "planned_steps": is_whole},
    "gains": lambda value: isinstance(value, dict) and all(map(_gain, value.values())),
    "target": is_text,
    "test_set": fields({"samples": is_whole, "digest": is_text}),
    "held_out": fields({"samples": is_whole, "select": is_whole}),
}
"""Fields that it may have."""
