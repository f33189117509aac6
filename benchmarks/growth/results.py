"""What the finished cells say: tables, claims and pictures, ready to be written."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.growth.cases import Case, cases
from benchmarks.growth.cells import machines
from benchmarks.growth.claims import FAMILIES, Claim, judged
from benchmarks.growth.pictures import picture, points
from benchmarks.growth.plan import Plan
from benchmarks.growth.rows import MAIN, ROWS, RowKind, compared_with
from benchmarks.growth.tables import (
    Cells,
    claims_markdown,
    compare,
    details,
    markdown,
    nats_gained,
    overview,
    points_gained,
)

QUANTITIES = {"train_flops": "training FLOPs, relative to the grown run's", "parameters": "parameters"}


def collected(plan: Plan, families: Mapping[str, Sequence[Claim]] = FAMILIES) -> dict[str, Any]:
    """Everything, from the cells that are there, with the claims of these families.

    ``tasks`` holds the main tables, ``others`` those of all other rows by task and by the grown row that they are
    compared with, which comes first in each.
    """
    cells = {case: _cells(plan, case) for case in plan.cases}
    there = [case for case in plan.cases if "grown" in cells[case]]
    planned = {case.name for case in (*cases(text=Path("text")), *plan.cases)}
    return {
        "machines": machines(plan.directory, plan.cases),
        "settings": {case.name: _settings(plan, case, cells[case]) for case in plan.cases},
        "tasks": {case.name: _table(cells[case], MAIN) for case in there},
        "others": {case.name: others for case in plan.cases if (others := _others(cells[case]))},
        "claims": {family: _claims(claims, cells, planned) for family, claims in families.items()},
    }


def lost(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What the tables of ``old`` hold and those of ``new`` lack: rows, or seeds of rows."""
    seeds = _seeds(new)
    return [f"{task}, {row}" for (task, row), held in _seeds(old).items() if not held <= seeds.get((task, row), set())]


def replaces(results: Mapping[str, Any], published: Path) -> bool:
    """Whether results may take the place of those that are published; tells if not, for those hold more."""
    missing = lost(json.loads(published.read_text()), results) if published.exists() else []
    if missing:
        told_missing = "; ".join(missing[:5]) + ("; ..." if len(missing) > 5 else "")
        print(
            f"{published} stays as it is: it holds what is not computed or not asked for here ({told_missing}). "
            "Delete it to have it replaced."
        )
    return not missing


def _seeds(results: Mapping[str, Any]) -> dict[tuple[str, str], set[int]]:
    """Seeds by task and row."""
    tables = [*results["tasks"].items()]
    tables += [(task, table) for task, groups in results["others"].items() for table in groups.values()]
    return {(task, row): {int(seed) for seed in one["by_seed"]} for task, table in tables for row, one in table.items()}


def told(results: Mapping[str, Any]) -> str:
    """All tables and claims, as they are printed."""
    parts = [overview(results["tasks"])] if results["tasks"] else []
    for task, table in results["tasks"].items():
        parts += [markdown(task, table), details(table)]
    for task, groups in results["others"].items():
        for table in groups.values():
            parts += [markdown(task, table), details(table)]
    for family, claims in results["claims"].items():
        if claims:
            parts += [f"**Claims, {family}**", claims_markdown(claims)]
    return "\n\n".join(parts)


def pictures(results: Mapping[str, Any]) -> dict[str, str]:
    """An SVG for every task and quantity, by file name; all rows that were compared with ``grown``."""
    drawn = {}
    for task, headline in results["tasks"].items():
        table = {**results["others"].get(task, {}).get("grown", {}), **headline}
        for quantity, label in QUANTITIES.items():
            title = f"{task}: test accuracy and 95 % interval over seeds"
            drawn[f"{task}-{quantity}.svg"] = picture(title, label, points(table, quantity))
    return drawn


def meanings() -> str:
    """What every row is, as a list."""
    return "\n".join(f"- `{name}`: {_meaning(kind)}" for name, kind in ROWS.items())


def _meaning(kind: RowKind) -> str:
    searched = "shipped learning rate and schedule" if not kind.schedules else f"searched: {', '.join(kind.schedules)}"
    return f"{kind.meaning} ({searched}{'' if kind.follows is None else f'; follows {kind.follows}'})"


def _cells(plan: Plan, case: Case) -> dict[str, Cells]:
    """Cells of all rows of a case, by their chosen recipe."""
    found: dict[str, Cells] = {}
    for row in ROWS:
        recipe, seeds = plan.choice(case, row), plan.seeds_of(row)
        cells = {} if recipe is None else plan.cells(case, row, recipe, seeds)
        if cells:
            found[row] = cells
    return found


def _settings(plan: Plan, case: Case, cells: Mapping[str, Cells]) -> dict[str, Any]:
    searched = {row: plan.tuning(case, row) for row in cells if ROWS[row].schedules}
    return {
        "host": case.host,
        **case.pace._asdict(),
        "rates": case.rates,
        "tuning_seeds": plan.tuning_seeds_of(case),
        "trained": asdict(case.trained),
        "margin": case.margin,
        "wide": case.wide,
        "host_settings": dict(case.host_settings),
        "growth": dict(case.growth),
        "precision": case.precision,
        "is_compiled": case.is_compiled,
        "search": searched,
    }


def _table(cells: Mapping[str, Cells], rows: Sequence[str], grown: str = "grown") -> dict[str, Any]:
    return compare(cells[grown], {row: cells[row] for row in rows if row in cells})


def _others(cells: Mapping[str, Cells]) -> dict[str, Any]:
    """Tables of the rows that are not in the main one, by the grown row that they are compared with."""
    groups: dict[str, list[str]] = {}
    for row in cells:
        if row not in MAIN:
            groups.setdefault(compared_with(row), []).append(row)
    return {
        grown: _table(cells, [grown, *(row for row in rows if row != grown)], grown)
        for grown, rows in groups.items()
        if grown in cells
    }


def _claims(
    claims: Sequence[Claim], cells: Mapping[Case, Mapping[str, Cells]], planned: Collection[str]
) -> list[dict[str, Any]]:
    """Claims of a family; corrected over all tasks that are planned, computed or not."""
    margins = {case.name: case.margin for case in cells}
    differences: dict[str, dict[Claim, list[float]]] = {}
    for case, rows in cells.items():
        for claim in claims:
            if claim.grown in rows and claim.against in rows:
                gains = points_gained if claim.measure == "accuracy" else nats_gained
                gained = gains(rows[claim.grown], rows[claim.against])
                if gained:
                    differences.setdefault(case.name, {})[claim] = gained
    return judged(differences, margins, len(claims) * len(planned)) if differences else []
