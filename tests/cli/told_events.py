"""One event of every kind that a session may write, in an order in which they may come."""

from typing import Any

_ALL = {"layer_id": "", "seed_id": "all", "blueprint": "bottleneck_mlp", "lifecycle": 1}
_SPAN = {"layer_id": "encoder.0:2", "seed_id": "all", "blueprint": "glu", "lifecycle": 2}
_LAYER = {"layer_id": "encoder.0", "seed_id": 3, "blueprint": "affine", "lifecycle": 3}


def _transition(one: dict[str, Any], source: str, target: str, **fields: Any) -> dict[str, Any]:
    said = {"arm": None, "reason": "the growth window is open", "gates": {}, "who": "tamiyo", "version": 1}
    return {"event": "transition", "step": 75, "epoch": 3, **one, "source": source, "target": target, **said, **fields}


def _arm(one: dict[str, Any], name: str, *, passed: bool, z: float | None) -> dict[str, Any]:
    losses = {"gate_loss": 0.81, "twin_gate_loss": None if z is None else 1.02, "twin_z": z, "select_loss": 0.8}
    step = {"step": 115, "round": 1, "steps": 40, "arm_flops": 6963200}
    return {
        "event": "arm_ended",
        "arm": f"round1/{name}",
        "lifecycle": one["lifecycle"],
        "passed": passed,
        **step,
        **losses,
    }


def _end(one: dict[str, Any], outcome: str, reason: str) -> dict[str, Any]:
    return {"event": "field_report", "step": 150, **one, "outcome": outcome, "reason": reason}


ROUND = [
    _transition(_ALL, "DORMANT", "GERMINATED"),
    _transition(_SPAN, "DORMANT", "GERMINATED"),
    _transition(_LAYER, "DORMANT", "GERMINATED"),
    {"event": "round_begun", "step": 75, "round": 1, "end_step": 150, "candidates": [_ALL, _SPAN, _LAYER]},
    _transition(_ALL, "GRAFTING", "STABILIZATION", arm="round1/model/bottleneck_mlp", gates={"alpha": 1.0}),
    _arm(_ALL, "model/bottleneck_mlp", passed=True, z=9.57),
    _arm(_SPAN, "encoder.0:2/glu", passed=False, z=None),
    _end(_LAYER, "CANCELLED", "asked for"),
    _end(_SPAN, "CULLED", "lost_round"),
    _transition(_SPAN, "GERMINATED", "CULLED", reason="lost_round"),
    _transition(_LAYER, "GERMINATED", "CANCELLED", reason="asked for"),
    _transition(_ALL, "EVALUATING", "FINE_TUNING", reason="gate passed"),
    {"event": "round_ended", "step": 150, "round": 1, "adopted": _ALL, "reason": "beat the twin"},
]

EVENTS: list[dict[str, Any]] = [
    {"event": "model", "step": 0, "planned_steps": 750, "type": "MLP", "parameters": 682, "modules": [], "places": []},
    {"event": "note", "step": 0, "text": "360 gate samples are few."},
    {"event": "epoch", "epoch": 1, "step": 25, "lr": 0.005, "train_loss": 2.3, "val_loss": 2.1, "val_metric": 0.21},
    {"event": "telemetry", "epoch": 1, "step": 25, "places": {"": {"gradient_norm": [0.5]}, "encoder.0": {}}},
    {"event": "epoch", "epoch": 2, "step": 50, "lr": 0.004, "train_loss": None, "val_loss": None, "val_metric": None},
    *ROUND,
    {"event": "refused", "step": 160, **_SPAN, "target": "GERMINATED", "asked": "demand", "reason": "embargo"},
    {"event": "veto", "step": 160, **_SPAN, "target": "GERMINATED", "asked": "demand", "reason": "no parameters left"},
    {"event": "trial_begun", "step": 170, "trial": 1, "candidates": [_SPAN]},
    {"event": "trial_ended", "step": 260, "trial": 1, "adopted": [], "reason": "lost", "passed": False, "twin_z": -2.0},
    {"event": "fault", "step": 270, "layer_id": "encoder.0", "lifecycles": [3]},
    {"event": "recovery", "step": 280, "recovered": True, "select_loss": 0.5, "select_loss_before_graft": 0.5},
    {"event": "recovery", "step": 281, "recovered": False, "select_loss": 0.9, "select_loss_before_graft": 0.5},
    {"event": "emergency", "step": 290, "reason": "losses spike", "response": "cull", "layer_id": "encoder.0"},
    {"event": "emergency", "step": 300, "reason": "not finite", "response": "rollback", "layer_id": None},
    {"event": "rollback", "step": 300, "to_step": 250, "reason": "emergency", "who": "session", "lifecycles": []},
    {"event": "rechunked", "step": 310, "layer_id": "encoder.0", "num_seeds": 4},
    {"event": "keep_look", "step": 450, "layer_id": "", "lifecycle": 1, "look": 1, "passed": False, "ablation_z": None},
    {"event": "keep_look", "step": 560, "layer_id": "", "lifecycle": 1, "look": 2, "passed": True, "ablation_z": 17.7},
    _end(_ALL, "FOSSILIZED", "gate passed"),
    _transition(_ALL, "FINE_TUNING", "FOSSILIZED", reason="gate passed"),
    _transition(_ALL, "FOSSILIZED", "DORMANT", reason="outcome is over", lifecycle=None),
    {"event": "vitals", "step": 750, "arm": None, "seconds": 9.5, "steps": 25, "step_seconds": 0.1, "step_times": []},
    {"event": "checkpoint", "step": 750, "seconds": 0.1, "bytes": 80467, "where": "checkpoints/000015"},
    {"event": "finished", "step": 750, "select_loss": 0.18, "select_metric": 0.92, "train_flops": 147831744},
]
