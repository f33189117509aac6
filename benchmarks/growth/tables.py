"""From cells to tables: means with bootstrap intervals, and paired differences to the grown run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.growth.cells import GROWN_ROWS, cell_path

RESAMPLES = 10_000
KEPT_BY_SEED = ("parameters", "train_flops", "test_metric", "test_loss", "lr", "schedule")


def read_cells(directory: Path, case: str, row: str, seeds: range) -> dict[int, dict[str, Any]]:
    """Finished cells of a row, by seed."""
    paths = {seed: cell_path(directory, case, row, seed) for seed in seeds}
    return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval (percentile, over seeds)."""
    array = np.asarray(values, dtype=float)
    if len(array) < 2 or np.ptp(array) == 0:
        return float(array.mean()), float(array.mean()), float(array.mean())
    random = np.random.default_rng(0)
    found = stats.bootstrap((array,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=random)
    return float(array.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare(directory: Path, case: str, rows: tuple[str, ...], seeds: range) -> dict[str, Any]:
    """All rows of a table: accuracy in percent, loss in nats, and grown minus row, seed by seed."""
    grown = read_cells(directory, case, "grown", seeds)
    table: dict[str, Any] = {}
    for row in rows:
        cells = {seed: cell for seed, cell in read_cells(directory, case, row, seeds).items() if "test_loss" in cell}
        shared = [seed for seed in cells if seed in grown]
        if not shared:
            continue
        gains = [100 * (grown[seed]["test_metric"] - cells[seed]["test_metric"]) for seed in shared]
        losses = [grown[seed]["test_loss"] - cells[seed]["test_loss"] for seed in shared]
        probes = [cells[seed]["probe_flops"] / cells[seed]["train_flops"] for seed in shared if row in GROWN_ROWS]
        table[row] = {
            "seeds": len(shared),
            "parameters": interval([cells[seed]["parameters"] for seed in shared]),
            "train_flops_relative": interval([cells[s]["train_flops"] / grown[s]["train_flops"] for s in shared]),
            "accuracy": interval([100 * cells[seed]["test_metric"] for seed in shared]),
            "loss": interval([cells[seed]["test_loss"] for seed in shared]),
            "points_gained": interval(gains),
            "loss_difference": interval(losses),
            "seeds_won_on_accuracy": sum(gain > 0 for gain in gains),
            "seeds_won_on_loss": sum(loss < 0 for loss in losses),
            "losses_won_among_grown": [
                sum(grown[s]["test_loss"] < cells[s]["test_loss"] for s in shared if grown[s]["kept"]),
                sum(bool(grown[s]["kept"]) for s in shared),
            ],
            "by_seed": {seed: {name: cells[seed][name] for name in KEPT_BY_SEED} for seed in shared},
            "share_of_arms_and_judging": interval(probes) if probes else None,
            "kept": sum(bool(cells[seed].get("kept")) for seed in shared) if "kept" in cells[shared[0]] else None,
        }
    return table


def markdown(name: str, table: dict[str, Any]) -> str:
    """A table as the README shows it."""
    lines = [
        f"**{name}**, {next(iter(table.values()))['seeds']} paired seeds",
        "",
        "| row | parameters | FLOPs | test accuracy % | test loss | grown minus row: points | loss | won on loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, cells in table.items():
        grew = f" (grew {cells['kept']} of {cells['seeds']})" if cells["kept"] is not None else ""
        own = row == "grown"
        lines.append(
            f"| {row}{grew} | {cells['parameters'][0]:,.0f} | {cells['train_flops_relative'][0]:.2f} | "
            f"{_shown(cells['accuracy'], '.1f')} | {_shown(cells['loss'], '.3f')} | "
            f"{'' if own else _shown(cells['points_gained'], '+.1f')} | "
            f"{'' if own else _shown(cells['loss_difference'], '+.3f')} | "
            f"{'' if own else str(cells['seeds_won_on_loss']) + ' of ' + str(cells['seeds'])} |"
        )
    return "\n".join(lines)


def kept_trials(directory: Path, case: str, row: str, seeds: range) -> dict[str, int]:
    """How often a control blueprint was kept."""
    cells = read_cells(directory, case, row, seeds)
    return {"trials": len(cells), "kept": sum(bool(cell["kept"]) for cell in cells.values())}


def machines(directory: Path) -> list[dict[str, Any]]:
    """What the cells were computed on, each kind once."""
    found = {json.dumps(json.loads(path.read_text())["machine"]) for path in directory.glob("cells/*/*/*.json")}
    return [json.loads(text) for text in sorted(found)]


def _shown(value: tuple[float, float, float], spec: str) -> str:
    return f"{value[0]:{spec}} [{value[1]:{spec}}, {value[2]:{spec}}]"
