"""Tiny run directories, written by hand, and the evaluation of cited numbers from nothing but their files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

FLOPS = {"run_flops": 0, "arm_flops": 0, "judging_flops": 0}
CONFIG = {"data": "digits", "host": "mlp", "policy": "heuristic", "seed": 0, "epochs": 4, "lr": 0.005}
CONFIG |= {"controls": True, "growth": {"max_rounds": 2, "gate_z": 2.33}}


def write(
    directory: Path,
    *,
    config: dict | None = CONFIG,
    audit: list[dict] | None = None,
    metrics: list[dict] | None = None,
    result: dict | None = None,
    progress: dict | None = None,
    samples: dict | None = None,
) -> Path:
    """A run directory with these files; None leaves one out, logs excepted, which are empty then."""
    directory.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (directory / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for name, events in (("audit", audit), ("metrics", metrics)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events or []))
    for name, content in (("result", result), ("progress", progress)):
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    if samples is not None:
        save_file({name: np.asarray(values) for name, values in samples.items()}, directory / "samples.safetensors")
    return directory


def finished(directory: Path, **fields: Any) -> Path:
    """A finished run in which one of two candidates became a fossil."""
    reports = [lifecycle(1, outcome="FOSSILIZED", reason="gate passed"), lifecycle(2, layer_id="0:2")]
    given = {"audit": log(), "metrics": [epoch(number) for number in range(1, 5)], "result": result(reports)}
    return write(directory, **given | fields)


def row(loss: float | None = 0.2, metric: float | None = 0.9, parameters: int = 682, flops: int = 4_000_000) -> dict:
    """A row of a result."""
    values = {"val_loss": loss, "val_metric": metric, "test_loss": loss, "test_metric": metric}
    return {
        "parameters": parameters,
        "train_flops": flops,
        "seconds": 80.4,
        "lr": 0.003,
        "schedule": "cosine",
        **values,
    }


def result(
    lifecycles: list[dict],
    *,
    grown: dict | None = None,
    host_on: dict | None = None,
    static: dict | None = None,
    **fields: Any,
) -> dict:
    """A result; without controls it has reasons."""
    rows = {"grown": grown or row(0.18, 0.95, 1292), "host_on": host_on, "static": static}
    reasons = {name: "left out by --no-controls" for name in ("host_on", "static") if rows[name] is None}
    known = {"seed": 0, "task": "digits", "host": "mlp", "metric": "accuracy", "planned_steps": 100}
    return {**known, "rows": rows, "reasons": reasons, "lifecycles": lifecycles, "probe_flops": 1_000_000, **fields}


def gain(loss: tuple[float, float, float], metric: tuple[float, float, float] | None, units: int = 300) -> dict:
    """Gains over a control: mean, low, high."""
    names = ("mean", "low", "high")
    found = None if metric is None else dict(zip(names, metric, strict=True))
    return {"loss": dict(zip(names, loss, strict=True)), "metric": found, "units": units}


def lifecycle(
    number: int, *, layer_id: str = "", outcome: str = "CULLED", reason: str = "lost_round", **more: Any
) -> dict:
    """A field report."""
    where = {"lifecycle": number, "layer_id": layer_id, "seed_id": "all", "blueprint": "bottleneck_mlp"}
    fields = {"settings": {"hidden": 8}, "strategy": "fixed_ramp", "trial": "round", "parameters": 610, "gates": {}}
    return {
        **where,
        **fields,
        "born_step": 25,
        "ended_step": 75,
        "outcome": outcome,
        "reason": reason,
        "flops": 9,
        **more,
    }


def candidate(number: int, layer_id: str = "") -> dict:
    """As a round describes it."""
    return {"lifecycle": number, "layer_id": layer_id, "seed_id": "all", "blueprint": "bottleneck_mlp"}


def model(**fields: Any) -> dict:
    """What the host is."""
    known = {"step": 0, "planned_steps": 100, "type": "Sequential", "parameters": 682, "modules": [], "places": []}
    return {"event": "model", "time": 1.0, **known, **fields}


def transition(number: int, target: str, step: int, *, source: str = "EVALUATING", arm: str | None = None) -> dict:
    """A seed's change of state."""
    known = {"layer_id": "", "seed_id": "all", "who": "session", "reason": "gate passed", "gates": {}, "version": 1}
    what = {"source": source, "target": target, "lifecycle": number, "arm": arm}
    return {"event": "transition", "time": 2.0, "step": step, "epoch": 1, **what, **known, **FLOPS}


def arm_ended(number: int, *, passed: bool = False, z: float = -3.0, **fields: Any) -> dict:
    """The verdict on a candidate."""
    losses = {
        "select_loss": 1.1,
        "twin_select_loss": 1.0,
        "gate_loss": 1.06,
        "twin_gate_loss": 1.0,
        "metric_gain": -0.02,
    }
    what = {"round": 1, "arm": f"round1/{number}", "lifecycle": number, "steps": 25, "arm_flops": 9, "passed": passed}
    return {"event": "arm_ended", "time": 3.0, "step": 50, **what, **losses, "twin_z": z, **fields}


def round_begun(*candidates: dict) -> dict:
    """A round."""
    return {"event": "round_begun", "time": 2.5, "step": 25, "round": 1, "end_step": 50, "candidates": list(candidates)}


def round_ended(adopted: dict | None, reason: str) -> dict:
    """Its end."""
    return {"event": "round_ended", "time": 3.5, "step": 50, "round": 1, "adopted": adopted, "reason": reason}


def epoch(number: int, **fields: Any) -> dict:
    """A boundary after each 25 steps."""
    losses = {"lr": 0.01, "train_loss": 1.0 / number, "val_loss": 1.2 / number, "val_metric": 0.2 * number}
    spent = {"run_flops": 750_000 * number, "arm_flops": 200_000 * number, "judging_flops": 50_000 * number}
    return {"event": "epoch", "time": 4.0, "epoch": number, "step": 25 * number, **losses, **spent, **fields}


def log() -> list[dict]:
    """Of a round of two candidates, of which the first was adopted and became a fossil."""
    first, second = candidate(1), candidate(2, "0:2")
    return [
        model(),
        *(transition(number, "GERMINATED", 25, source="DORMANT") for number in (1, 2)),
        round_begun(first, second),
        arm_ended(1, passed=True, z=9.5, gate_loss=0.8, metric_gain=0.1),
        arm_ended(2),
        transition(1, "FINE_TUNING", 50),
        round_ended(first, "beat the twin"),
        transition(1, "FOSSILIZED", 75, source="FINE_TUNING"),
        {"event": "finished", "time": 9.0, "step": 100, "select_loss": 0.2, "select_metric": 0.9, "train_flops": 9},
    ]


def evaluated(root: Path, how: str, sources: list[str]) -> float:
    """A cited number, from the files alone.

    Args:
        root: what the sources are relative to.
        how: as in ``Cited``.
        sources: likewise.
    """
    if how.startswith("paired"):
        return _paired(root, how, sources)
    values = [_looked_up(root, source) for source in sources]
    match how:
        case "value":
            (value,) = values
            return value
        case "ratio":
            return values[0] / values[1]
        case "difference":
            return values[0] - values[1]
        case "count":
            return len(set(sources))
        case "sum":
            return sum(values)
    raise AssertionError(f"{how} is unknown")


def _looked_up(root: Path, source: str) -> Any:
    file, _, place = source.partition("#")
    number, *steps = place.split("/")
    text = (root / file).read_text()
    value = (
        yaml.safe_load(text)
        if file.endswith(".yaml")
        else json.loads(text.splitlines()[int(number) - 1] if number else text)
    )
    for step in steps:
        step = step.replace("~1", "/").replace("~0", "~")
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def _paired(root: Path, how: str, sources: list[str]) -> float:
    columns, groups = [], None
    for source in sources:
        file, _, name = source.partition("#")
        tensors = load_file(root / file)
        columns.append(tensors[name].astype(float))
        groups = tensors.get("groups", groups)
    apart = columns[0] - columns[1]
    if groups is not None:
        apart = np.array([apart[groups == group].mean() for group in np.unique(groups)])
    error = 1.959964 * apart.std(ddof=1) / math.sqrt(len(apart))
    return {"paired_mean": apart.mean(), "paired_low": apart.mean() - error, "paired_high": apart.mean() + error}[how]
