"""Run directories as Esper leaves them, made up: as large as wanted, with lifecycles of every outcome."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

STEPS_PER_EPOCH = 100
STEP_FLOPS, ARM_FLOPS, JUDGING_FLOPS = 1_000_000, 40_000_000, 2_000_000
WIDTH = 512
MEASURES = ("chunk_variance", "inactive_ratio", "mean_abs_correlation", "gradient_norm")
STATES = ("GERMINATED", "TRAINING", "GRAFTING", "STABILIZATION", "EVALUATING", "FINE_TUNING", "FOSSILIZED")


def write_synthetic(
    directory: Path,
    *,
    seeds: int = 640,
    boundaries: int = 30,
    blocks: int = 24,
    noise: float = 0.25,
    finished: bool = True,
    controls: bool = True,
) -> Path:
    """Write a run directory of the present format.

    Args:
        directory: is made if it is missing.
        seeds: of all layers together, at least two per block.
        boundaries: epochs, at least 12.
        blocks: of the model, two layers each.
        noise: standard deviation of the logarithm of what seeds sense, independent from boundary to boundary.
        finished: whether there is a result.
        controls: whether it has rows of controls.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = Log(boundaries * STEPS_PER_EPOCH, model_event(seeds, blocks, boundaries * STEPS_PER_EPOCH))
    live_through(log, boundaries, finished)
    log.audit.sort(key=lambda event: event["time"])
    write_lines(directory / "audit.jsonl", log.audit)
    with (directory / "metrics.jsonl").open("w") as file:
        for line in metrics(log, boundaries, noise):
            file.write(json.dumps(line) + "\n")
    (directory / "config.yaml").write_text(CONFIG.format(epochs=boundaries))
    rows = {name: control(name, boundaries) for name in ("host_on", "static")} if controls else {}
    if finished:
        write_result(directory, log, rows, boundaries)
    else:
        (directory / "progress.json").write_text(json.dumps({"seconds": 12.5, "rows": {}}))
    return directory


CONFIG = """\
data: made-up
host: gpt
policy: heuristic
seed: 3
epochs: {epochs}
batch_size: 32
lr: 0.003
controls: true
growth:
  layers: null
  seeds_per_layer: 64
  max_rounds: 2
  keep_looks: [0.6, 0.75, 0.9]
"""


def write_lines(path: Path, events: list[dict[str, Any]]) -> None:
    """Write a log."""
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def model_event(seeds: int, blocks: int, planned_steps: int) -> dict[str, Any]:
    """A model of equal blocks, with seeds in every layer, around every block, both halves and the whole."""
    modules, places = [], [place("", "model", [], 1)]
    modules.append({"name": "blocks", "type": "Sequential", "parameters": blocks * 2 * WIDTH * WIDTH})
    half = blocks // 2
    for first, last in ((0, half - 1), (half, blocks - 1)):
        covers = [f"blocks.{index}" for index in range(first, last + 1)]
        places.append(place(f"{covers[0]}:{covers[-1]}", "span", covers, 1))
    shares = np.diff(np.linspace(0, seeds, 2 * blocks + 1).round().astype(int)).tolist()
    for index in range(blocks):
        name = f"blocks.{index}"
        modules.append({"name": name, "type": "Block", "parameters": 2 * WIDTH * WIDTH})
        places.append(place(name, "block", [name], 1))
        for layer in ("attention", "mlp"):
            modules.append({"name": f"{name}.{layer}", "type": "Linear", "parameters": WIDTH * WIDTH})
            places.append(place(f"{name}.{layer}", "layer", [f"{name}.{layer}"], shares.pop(0)))
    return {
        "event": "model",
        "step": 0,
        "planned_steps": planned_steps,
        "type": "GPT",
        "parameters": blocks * 2 * WIDTH * WIDTH,
        "modules": modules,
        "places": places,
    }


def place(layer_id: str, kind: str, covers: list[str], seeds: int) -> dict[str, Any]:
    """An entry of the ``model`` event."""
    widths = {"inputs": WIDTH, "outputs": WIDTH, "seeds": seeds, "layout": "tokens"}
    return {"layer_id": layer_id, "kind": kind, "covers": covers, **widths}


@dataclass
class Log:
    """What happened, in whatever order it is told; sorted by time in the end."""

    planned_steps: int
    model: dict[str, Any]
    audit: list[dict[str, Any]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    awake: list[tuple[int, int, str, int]] = field(default_factory=list)  # from step, to step, place, state code
    arm_flops: int = 0
    judging_flops: int = 0

    def __post_init__(self) -> None:
        self.audit.append({"time": 0.0, **self.model})

    def write(self, event: str, step: int, **fields: Any) -> dict[str, Any]:
        line = {"event": event, "time": 1e9 + step + len(self.audit) / 1e4, "step": step, **fields}
        self.audit.append(line)
        return line

    def flops(self, step: int) -> dict[str, int]:
        """Cumulative, as at a step of the run."""
        return {
            "run_flops": step * STEP_FLOPS,
            "arm_flops": self.arm_flops,
            "judging_flops": self.judging_flops,
        }

    def move(
        self,
        one: dict[str, Any],
        target: str,
        step: int,
        source: str,
        *,
        arm: str | None = None,
        at: int = 0,
        **how: Any,
    ) -> None:
        """A transition; an arm's is logged when the run stands ``at`` a later step."""
        fields = {"reason": "gate passed", "gates": {"is_finite": True}} | how
        where = {"layer_id": one["layer_id"], "seed_id": one["seed_id"], "lifecycle": one["lifecycle"]}
        line = self.write("transition", step, epoch=step // STEPS_PER_EPOCH, arm=arm, **where, target=target)
        line |= {"source": source, "who": "session", "version": 1, **fields, **self.flops(at or step)}
        if at:
            line["time"] = 1e9 + at + len(self.audit) / 1e4

    def report(self, one: dict[str, Any], born: int, ended: int, outcome: str, reason: str, **fields: Any) -> None:
        names = ("lifecycle", "layer_id", "seed_id", "blueprint")
        facts = {name: one[name] for name in names} | {"settings": {"hidden": one["hidden"]}, "trial": "round"}
        facts |= {"strategy": "fixed_ramp", "parameters": 2 * WIDTH * one["hidden"], "gates": {}, "flops": ARM_FLOPS}
        facts |= {"born_step": born, "ended_step": ended, "outcome": outcome, "reason": reason, **fields}
        self.reports.append(facts)
        self.write("field_report", ended, **facts)


def candidate(number: int, layer_id: str, hidden: int = 16, blueprint: str = "bottleneck_mlp") -> dict[str, Any]:
    """As rounds and trials describe it."""
    names = {"lifecycle": number, "layer_id": layer_id, "seed_id": "all", "blueprint": blueprint}
    return {**names, "hidden": hidden}


def live_through(log: Log, boundaries: int, finished: bool) -> None:
    """A round with a winner and two losers, a live trial that is rolled back, one cancelled, one removed, one open."""
    unit = STEPS_PER_EPOCH
    middle = next(one["layer_id"] for one in log.model["places"] if one["kind"] == "layer")
    last = log.model["places"][-1]["layer_id"]
    log.write("note", 0, text="360 gate samples are few (below 500): refusals are to be expected.")
    span = log.model["places"][1]["layer_id"]
    play_round(log, [candidate(1, ""), candidate(2, span), candidate(3, middle, 4)], unit, 2 * unit, passed=(1,))
    play_trial(log, candidate(4, last, 8), 3 * unit, 6 * unit)
    cancelled = candidate(5, middle, 4)
    log.move(cancelled, "GERMINATED", 7 * unit, "DORMANT", reason="asked for", gates={})
    log.move(cancelled, "CANCELLED", 8 * unit, "GERMINATED", reason="asked for", gates={})
    log.report(cancelled, 7 * unit, 8 * unit, "CANCELLED", "asked for")
    play_round(log, [candidate(6, last, 8)], 8 * unit, 9 * unit, passed=(6,))
    end = boundaries * unit
    judged, frozen = max(end * 3 // 5, 10 * unit), max(end * 4 // 5, 11 * unit)
    look(log, 1, "", judged, passed=True)
    look(log, 6, last, judged, passed=False)
    log.move(candidate(6, last), "CULLED", judged, "FINE_TUNING", reason="keep gate refused")
    log.report(candidate(6, last, 8), 8 * unit, judged + unit, "CULLED", "keep gate refused")
    refusal = {"layer_id": "", "seed_id": "all", "target": "GERMINATED", "who": "tamiyo", "arm": None, "epoch": 0}
    log.write("veto", judged, **refusal, reason="max_rounds is reached", asked="stalled", **log.flops(judged))
    if finished:
        log.move(candidate(1, ""), "FOSSILIZED", frozen, "FINE_TUNING")
        log.report(candidate(1, ""), unit, frozen, "FOSSILIZED", "gate passed")
        log.write("finished", end, select_loss=0.4, select_metric=0.9, train_flops=sum(log.flops(end).values()))
    log.awake.append((2 * unit, frozen, "", 6))


def play_round(log: Log, candidates: list[dict[str, Any]], start: int, end: int, *, passed: tuple[int, ...]) -> None:
    """Arms of 40 steps; the first that passed is adopted."""
    number = 1 + sum(event["event"] == "round_begun" for event in log.audit)
    for one in candidates:
        log.move(one, "GERMINATED", start, "DORMANT", reason="the growth window is open", gates={})
        log.awake.append((start, end, one["layer_id"], 1))
    log.write("round_begun", start, round=number, end_step=end, candidates=candidates)
    for one in candidates:
        arm = f"round{number}/{one['layer_id'] or 'model'}/{one['blueprint']}"
        stop = start + 40
        for source, target, step in (
            *(("GERMINATED", "TRAINING", start), ("TRAINING", "GRAFTING", start)),
            *(("GRAFTING", "STABILIZATION", stop - 2), ("STABILIZATION", "EVALUATING", stop)),
        ):
            log.move(one, target, step, source, arm=arm, at=end)
        has_passed = one["lifecycle"] in passed
        before = sum(log.flops(end).values())
        log.arm_flops += ARM_FLOPS
        curve = {
            "steps": [start + 20, start + 40],
            "flops": [before + ARM_FLOPS // 2, before + ARM_FLOPS],
            "train_losses": [1.25, 1.0],
        }
        gain, error = (0.25, 0.03125) if has_passed else (-0.125, 0.0625)
        ended = {"round": number, "arm": arm, "lifecycle": one["lifecycle"], "steps": 40, "arm_flops": ARM_FLOPS}
        ended |= {"select_loss": 0.8, "twin_select_loss": 1.1, "passed": has_passed, "twin_z": gain / error}
        ended |= {"has_metric": True, "metric_gain": gain / 2, "gate_loss": 1.0 - gain, "twin_gate_loss": 1.0}
        line = log.write("arm_ended", stop, **ended, gain=gain, gain_se=error, curve=curve)
        line["time"] = 1e9 + end + len(log.audit) / 1e4
        log.judging_flops += JUDGING_FLOPS
    winner = next((one for one in candidates if one["lifecycle"] in passed), None)
    for one in candidates:
        if one is not winner:
            log.move(one, "CULLED", end, "GERMINATED", reason="lost_round", gates={})
            log.report(one, start, end, "CULLED", "lost_round")
    if winner is not None:
        log.move(winner, "FINE_TUNING", end, "EVALUATING", gates={"is_finite": True, "twin_z": 8.0})
    log.write("round_ended", end, round=number, adopted=winner, reason="beat the twin" if winner else "none did")


def play_trial(log: Log, one: dict[str, Any], start: int, end: int) -> None:
    """A live trial that is won, and then rolled back in an emergency."""
    steps = [start, start, start, start + 100, start + 150, start + 200]
    log.write("trial_begun", start, trial=1, candidates=[one])
    for source, target, step in zip(("DORMANT", *STATES), STATES[:6], steps, strict=False):
        log.move(one, target, step, source)
    curve = {"steps": [start + 100, start + 200], "flops": [1, 2], "train_losses": [1.0, 0.9]}
    judged = {"passed": True, "steps": 200, "select_loss": 0.7, "twin_select_loss": 0.75, "twin_z": 4.0, "gain": 0.05}
    judged |= {"gain_se": 0.0125, "gate_loss": 0.7, "twin_gate_loss": 0.75, "metric_gain": 0.01, "curve": curve}
    log.write("trial_ended", start + 200, trial=1, adopted=[one], reason="beat the twin", **judged)
    log.write("emergency", end, reason="the training loss is not finite", response="rollback", layer_id=None)
    log.move(one, "ROLLED_BACK", end, "FINE_TUNING", reason="emergency: the training loss is not finite", gates={})
    log.report(one, start, end, "ROLLED_BACK", "emergency: the training loss is not finite", trial="live")
    log.write("rollback", end, to_step=start, reason="emergency", who="session", lifecycles=[4], select_loss=1.0)
    log.awake.append((start, end, one["layer_id"], 3))


def look(log: Log, number: int, layer_id: str, step: int, *, passed: bool) -> None:
    """A keep look."""
    gain, error = (0.5, 0.03125) if passed else (0.03125, 0.0625)
    measured = {"ablation_z": gain / error, "ablation_gain": gain, "ablation_gain_se": error, "is_finite": True}
    log.write("keep_look", step, lifecycle=number, layer_id=layer_id, look=1, passed=passed, **measured)


def metrics(log: Log, boundaries: int, noise: float) -> Any:
    """Lines of ``metrics.jsonl``, one boundary after the other."""
    generator = np.random.default_rng(0)
    sizes = {one["layer_id"]: one["seeds"] for one in log.model["places"]}
    levels = {name: generator.normal(0, 1, (len(MEASURES), seeds)) for name, seeds in sizes.items()}
    for epoch in range(1, boundaries + 1):
        step = epoch * STEPS_PER_EPOCH
        losses = {"train_loss": 2 / epoch**0.5, "val_loss": 2.1 / epoch**0.5, "val_metric": 1 - 0.9 / epoch**0.5}
        yield {"event": "epoch", "epoch": epoch, "step": step, "lr": 0.003, **losses, **log.flops(step)}
        places: dict[str, Any] = {}
        for name, level in levels.items():
            values = np.exp(level + generator.normal(0, noise, level.shape))
            places[name] = {
                measure: [float(f"{value:.4g}") for value in row] for measure, row in zip(MEASURES, values, strict=True)
            }
            awake = [state for first, last, where, state in log.awake if where == name and first <= step < last]
            if awake:
                places[name]["awake"] = {"0": awake[-1]}
        yield {"event": "telemetry", "epoch": epoch, "step": step, "places": places}


def control(name: str, boundaries: int) -> dict[str, Any]:
    """A row of a control, with its learning curve."""
    epochs = range(1, boundaries + 1)
    curve = {
        "steps": [epoch * STEPS_PER_EPOCH for epoch in epochs],
        "flops": [epoch * STEPS_PER_EPOCH * STEP_FLOPS for epoch in epochs],
        **{key: [1.5 / epoch**0.5 for epoch in epochs] for key in ("train_losses", "val_losses")},
        "val_metrics": [1 - 0.9 / epoch**0.5 for epoch in epochs],
    }
    return {**row(0.45 if name == "host_on" else 0.42), "curve": curve}


def row(loss: float) -> dict[str, Any]:
    """A row of the result."""
    sizes = {"parameters": 24 * 2 * WIDTH * WIDTH, "train_flops": 3_000_000_000, "seconds": 2.5, "lr": 0.01}
    return {**sizes, "val_loss": loss, "val_metric": 0.9, "test_loss": loss, "test_metric": 0.875, "schedule": "cosine"}


def write_result(directory: Path, log: Log, rows: dict[str, Any], boundaries: int) -> None:
    """``result.json`` and ``samples.safetensors``."""
    interval = {"loss": {"mean": 0.05, "low": 0.02, "high": 0.08}, "metric": {"mean": 0.01, "low": -0.01, "high": 0.03}}
    result = {
        **{"seed": 3, "task": "made-up", "host": "gpt", "metric": "accuracy"},
        "rows": {"grown": {**row(0.4), "curve": None}, "host_on": None, "static": None, **rows},
        "reasons": {} if rows else dict.fromkeys(("host_on", "static"), "left out by --no-controls"),
        "lifecycles": log.reports,
        "probe_flops": STEP_FLOPS,
        "planned_steps": boundaries * STEPS_PER_EPOCH,
        "gains": {name: {**interval, "units": 400} if rows else None for name in ("host_on", "static")},
        "test_set": {"samples": 400, "digest": "00" * 32},
    }
    (directory / "result.json").write_text(json.dumps(result, indent=2))
    generator = np.random.default_rng(1)
    samples = {}
    for name in ("grown", *rows):
        samples[f"{name}.loss"] = generator.exponential(0.4, 400).astype(np.float32)
        samples[f"{name}.correct"] = (generator.random(400) < 0.875).astype(np.float32)
    save_file(samples, directory / "samples.safetensors")
