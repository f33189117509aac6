"""Records made by hand, event by event."""

from pathlib import Path
from typing import Any

from esper.observability.record import Record


def record(*audit: dict[str, Any], **fields: Any) -> Record:
    """A record of audit events, numbered from line 1; other fields of :class:`Record` by name."""
    numbered = {name: list(enumerate(fields.pop(name, []), start=1)) for name in ("epochs", "telemetry")}
    return Record(Path("run"), audit=list(enumerate(audit, start=1)), **numbered, **fields)


def move(
    lifecycle: int | None, source: str, target: str, step: int, arm: str | None = None, **more: Any
) -> dict[str, Any]:
    """A transition of the whole model's seeds."""
    where = {"layer_id": "", "seed_id": "all", "lifecycle": lifecycle}
    flops = {"run_flops": 10 * step, "arm_flops": 5, "judging_flops": 1}
    how = {"who": "session", "reason": f"to {target}", "gates": {}, "arm": arm, "step": step}
    return {"event": "transition", "source": source, "target": target, **where, **flops, **how, **more}


def candidate(lifecycle: int, **more: Any) -> dict[str, Any]:
    """As rounds and trials describe it."""
    return {"lifecycle": lifecycle, "layer_id": "", "seed_id": "all", "blueprint": "glu", "hidden": 4} | more


def ended(lifecycle: int, born: int, at: int, outcome: str, **more: Any) -> dict[str, Any]:
    """A field report."""
    facts = {"layer_id": "", "seed_id": "all", "blueprint": "glu", "settings": {"hidden": 4}, "strategy": "fixed_ramp"}
    facts |= {"trial": "round", "parameters": 99, "gates": {}, "flops": 7, "reason": "because", "outcome": outcome}
    return (
        {"event": "field_report", "step": at, "lifecycle": lifecycle, "born_step": born, "ended_step": at}
        | facts
        | more
    )


def arm_ended(lifecycle: int, step: int, *, passed: bool, **more: Any) -> dict[str, Any]:
    """The end of an arm."""
    name = f"round1/model/{lifecycle}"
    measured = {"select_loss": 0.5, "twin_select_loss": 0.6, "twin_z": 4.0, "gain": 0.5, "gain_se": 0.125}
    curve = {"steps": [step - 5, step], "flops": [100, 200], "train_losses": [0.9, 0.8]}
    facts = {"round": 1, "arm": name, "lifecycle": lifecycle, "steps": 10, "arm_flops": 7, "passed": passed}
    return {"event": "arm_ended", "step": step, **facts, **measured, "curve": curve} | more


def finished(step: int) -> dict[str, Any]:
    """The end of a run."""
    return {"event": "finished", "step": step, "select_loss": 0.1, "select_metric": None, "train_flops": 1}
