"""From cells to tables: means with bootstrap intervals, and paired differences to the grown run."""

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from benchmarks.growth.claims import interval

KEPT_BY_SEED = (
    "parameters",
    "train_flops",
    "test_metric",
    "test_loss",
    "val_metric",
    "val_loss",
    "seconds",
    "lr",
    "schedule",
)

Cells = Mapping[int, dict[str, Any]]


def compare(grown: Cells, rows: Mapping[str, Cells]) -> dict[str, Any]:
    """All rows of a table: accuracy in percent, loss in nats, and grown minus row, seed by seed.

    Args:
        grown: cells of the grown row that all are compared with, by seed.
        rows: cells of every row, by seed; seeds that the grown row lacks are left out, and so are rows without any.
    """
    table: dict[str, Any] = {}
    for row, all_cells in rows.items():
        shared = [seed for seed in all_cells if seed in grown]
        if not shared:
            continue
        cells = {seed: all_cells[seed] for seed in shared}
        pairs = [(grown[seed], cells[seed]) for seed in shared]
        losses = [loss_of(one) - loss_of(other) for one, other in pairs]
        grows = "kept" in cells[shared[0]]
        table[row] = {
            "seeds": len(shared),
            "parameters": interval([cell["parameters"] for cell in cells.values()]),
            "train_flops_relative": interval([other["train_flops"] / one["train_flops"] for one, other in pairs]),
            "accuracy": interval([100 * cell["test_metric"] for cell in cells.values()]),
            "loss": interval([loss_of(cell) for cell in cells.values()]),
            "points_gained": interval(points_gained(grown, cells)),
            "loss_difference": interval(losses),
            "seeds_won_on_accuracy": sum(gain > 0 for gain in points_gained(grown, cells)),
            "seeds_won_on_loss": sum(loss < 0 for loss in losses),
            "losses_won_among_grown": [
                sum(loss_of(one) < loss_of(other) for one, other in pairs if one["kept"]),
                sum(bool(one["kept"]) for one, _ in pairs),
            ],
            "recipe": {name: cells[shared[0]][name] for name in ("lr", "schedule")},
            "by_seed": {seed: {name: cell[name] for name in KEPT_BY_SEED} for seed, cell in cells.items()},
            "share_of_arms_and_judging": interval(
                [cell["probe_flops"] / cell["train_flops"] for cell in cells.values()]
            )
            if grows
            else None,
            "kept": sum(bool(cell["kept"]) for cell in cells.values()) if grows else None,
            "flops_to_accuracy": None if grows else flops_to_accuracy(pairs),
        }
    return table


def points_gained(grown: Cells, cells: Cells) -> list[float]:
    """Grown minus row in points of test accuracy, for every seed that both have."""
    return [100 * (grown[seed]["test_metric"] - cell["test_metric"]) for seed, cell in cells.items() if seed in grown]


def nats_gained(grown: Cells, cells: Cells) -> list[float]:
    """Row minus grown in test loss, for every seed that both have; a loss that is not finite counts as infinite."""
    return [loss_of(cell) - loss_of(grown[seed]) for seed, cell in cells.items() if seed in grown]


def flops_to_accuracy(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float | None]:
    """Share of a row's FLOPs at which its final accuracy on the *select* part is first reached, median over seeds.

    Args:
        pairs: cells of the grown run and of the row, for every seed.

    Returns:
        ``grown``: by the grown run, arms and judging among its FLOPs; ``itself``: by the row, which is below 1 where
        its curve is noisy and tells what of the other number is luck. None where it is not reached in most seeds.
    """
    shares = {
        "grown": [_reached(one, other) for one, other in pairs],
        "itself": [_reached(row, row) for _, row in pairs],
    }
    medians = {name: median(values) for name, values in shares.items()}
    return {name: value if math.isfinite(value) else None for name, value in medians.items()}


def markdown(name: str, table: Mapping[str, Any]) -> str:
    """A table as the README shows it."""
    most = max(cells["seeds"] for cells in table.values())
    lines = [
        f"**{name}**, {most} paired seeds",
        "",
        "| row | parameters | FLOPs | test accuracy % | test loss | grown minus row: points | loss | won on loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(table))
    for row, cells in table.items():
        grew = f" (grew {cells['kept']} of {cells['seeds']})" if cells["kept"] is not None else ""
        fewer = f", {cells['seeds']} seeds" if cells["seeds"] < most else ""
        own = row == first
        lines.append(
            f"| {row}{grew}{fewer} | {cells['parameters'][0]:,.0f} | {cells['train_flops_relative'][0]:.2f} | "
            f"{shown(cells['accuracy'], '.1f')} | {shown(cells['loss'], '.3f')} | "
            f"{'' if own else shown(cells['points_gained'], '+.1f')} | "
            f"{'' if own else shown(cells['loss_difference'], '+.3f')} | "
            f"{'' if own else str(cells['seeds_won_on_loss']) + ' of ' + str(cells['seeds'])} |"
        )
    return "\n".join(lines)


def overview(tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """The main rows of all tasks in few lines; FLOPs relative to those of the controls.

    Args:
        tasks: main table by task.
    """
    lines = [
        "| task | grown run | parameters | grew | FLOPs | against the host trained on: points | won on points, loss | "
        "against a network of its size: points | won on points, loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for task, table in tasks.items():
        for name, recipe in (("grown", "searched"), ("grown_default", "as shipped")):
            if name in table:
                row = table[name]
                gains = [_gained(row, table.get(control)) for control in ("host_on", "static")]
                lines.append(
                    f"| {task} | {recipe} | {row['parameters'][0]:,.0f} | {row['kept']} of {row['seeds']} | "
                    f"{row['train_flops_relative'][0]:.2f} | {' | '.join(gains)} |"
                )
    return "\n".join(lines)


def _gained(grown: Mapping[str, Any], row: Mapping[str, Any] | None) -> str:
    """Two cells of the overview: points gained, and seeds won on accuracy and on loss."""
    pairs = [] if row is None else [(one, row["by_seed"].get(seed)) for seed, one in grown["by_seed"].items()]
    found = [(one, other) for one, other in pairs if other is not None]
    if not found:
        return "not computed | "
    points = [100 * (one["test_metric"] - other["test_metric"]) for one, other in found]
    won = sum(loss_of(one) < loss_of(other) for one, other in found)
    return f"{shown(interval(points), '+.1f')} | {sum(gain > 0 for gain in points)}, {won} of {len(found)}"


def details(table: Mapping[str, Any]) -> str:
    """What the main table leaves out, row by row."""
    lines = [
        "| row | learning rate | schedule | won on accuracy | arms and judging | its accuracy at: grown | itself |",
        "|---|---|---|---|---|---|---|",
    ]
    first = next(iter(table))
    for row, cells in table.items():
        won = "" if row == first else f"{cells['seeds_won_on_accuracy']} of {cells['seeds']}"
        arms, reached = cells["share_of_arms_and_judging"], cells["flops_to_accuracy"]
        share = "" if arms is None else f"{100 * arms[0]:.0f} %"
        by = ["", ""] if reached is None else [_share(reached[name]) for name in ("grown", "itself")]
        lines.append(
            f"| {row} | {cells['recipe']['lr']:g} | {cells['recipe']['schedule']} | "
            f"{won} | {share} | {by[0]} | {by[1]} |"
        )
    return "\n".join(lines)


def claims_markdown(claims: list[dict[str, Any]]) -> str:
    """Claims as a table; those that do not hold stay."""
    lines = [
        "| task | claim | by | seeds | gain | won | p | p, corrected | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in claims:
        how = "better than" if one["margin"] is None else f"at most {one['margin']:g} points below"
        is_loss = one["measure"] == "loss"
        gain, holds = shown(one["gain"], "+.3f" if is_loss else "+.2f"), "yes" if one["holds"] else "no"
        lines.append(
            f"| {one['task']} | {one['grown']} {how} {one['against']} | {'nats' if is_loss else 'points'} | "
            f"{one['seeds']} | {gain} | {one['won']} | "
            f"{one['p']:.2g} | {one['p_holm']:.2g} | {holds} |"
        )
    return "\n".join(lines)


def shown(value: tuple[float, float, float], spec: str) -> str:
    """A mean and its interval."""
    return f"{value[0]:{spec}} [{value[1]:{spec}}, {value[2]:{spec}}]"


def tables_of(results: Mapping[str, Any], case: str) -> list[Mapping[str, Any]]:
    """The tables of a case: the main one, and those of other grown rows; an empty one where there is none."""
    return [results["tasks"].get(case, {}), *results["others"].get(case, {}).values()]


def _share(value: float | None) -> str:
    return "not reached" if value is None else f"{value:.2f} x"


def loss_of(cell: Mapping[str, Any]) -> float:
    """Test loss in nats; that of a network whose loss is not finite is worse than any other."""
    return math.inf if cell["test_loss"] is None else float(cell["test_loss"])


def _reached(grown: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    curve = grown["curve"]
    points = zip(curve["flops"], curve["val_metrics"], strict=True)
    first = next((flops for flops, metric in points if metric >= row["val_metric"]), math.inf)
    return float(first / row["train_flops"])
