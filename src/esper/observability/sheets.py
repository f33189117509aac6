"""The tables of a page: rows and their gains, field reports, commands that were not carried out, configuration."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from esper.observability.cited import Cited, Document, Name, Words, count, line, words
from esper.observability.files import AUDIT, CONFIG
from esper.observability.grown import reports
from esper.observability.labels import place_label, seed_label
from esper.observability.measures import loss_unit, metric_name
from esper.observability.record import Record
from esper.observability.rows import NOTHING, table
from esper.observability.shapes import is_number
from esper.observability.worth import TWIN

Sheet = dict[str, Any]
"""Columns and rows for a template: ``{"columns": [{"label", "numeric"}], "rows": [{"cells", "accent"}]}``."""

GROUPS = {
    "growth: where": ["layers", "exclude", "seeds_per_layer", "axis", "output_fields", "telemetry_rows"],
    "growth: what": [
        *("blueprints", "selection", "strategy", "capacity_per_round", "max_growth", "max_memory", "max_latency"),
        *("max_train_flops", "min_confidence", "graft_lr", "peak_lr", "rewarm", "graft_weight_decay"),
    ],
    "growth: when": [
        *("grow_after", "grow_at", "grow_until", "patience", "min_delta", "target_metric", "max_rounds"),
        *("max_candidates", "max_active_seeds", "max_failures", "boundary_steps"),
    ],
    "growth: trial": [
        *("trial", "judge", "objective", "incubation_fraction", "round_fraction", "compare", "choice", "arms"),
        *("ramp_fraction", "hold_fraction", "drift_threshold", "gate_z", "keep_looks", "freeze", "timeout"),
        "max_batch_bytes",
    ],
}
"""Options of growth by subject; those that are not listed come last."""

OTHERS = "growth: safety and the rest"


def sheet(columns: list[tuple[str, bool]], rows: Iterable[list[Any]], accent: list[bool] | None = None) -> Sheet | None:
    """A table for a template; None if it has no rows.

    Args:
        columns: labels, and whether they head numbers.
        rows: cells, as text or as something that is HTML.
        accent: which rows stand out.
    """
    cells = list(rows)
    if not cells:
        return None
    marked = accent or [False] * len(cells)
    return {
        "columns": [{"label": label, "numeric": numeric} for label, numeric in columns],
        "rows": [{"cells": row, "accent": accents} for row, accents in zip(cells, marked, strict=True)],
    }


def rows_sheet(result: dict[str, Any]) -> Sheet | None:
    """The grown network and its controls. Why a row is missing is told by the story."""
    whole = table(result)
    labels = list(whole.headings[1:])
    after = labels.index("held-out loss") + 1
    if labels[after] in labels[:after]:  # the metric's name heads two columns
        labels[after] = f"held-out {labels[after]}"
    return sheet(
        [("trained", False), *((label, True) for label in labels)],
        ([Name(row.name), *(row.cells or [NOTHING] * len(labels))] for row in whole.rows),
        accent=[row.name == "grown" for row in whole.rows],
    )


def reports_sheet(record: Record, comparisons: list[dict[str, Any]]) -> Sheet | None:
    """One row per finished lifecycle; None if there is none.

    Args:
        record: of the run.
        comparisons: of :func:`esper.observability.worth.worth`.
    """
    gains = {
        row["lifecycle"]: Cited(row["mean"], (f"{AUDIT}#{row['line']}/gain",), "value", "nats")
        for row in comparisons
        if row["against"] == TWIN and row["mean"] is not None
    }
    cells = [
        [
            words(one.cite("lifecycle")),
            Name(seed_label(one.content["layer_id"], one.content["seed_id"])),
            Name(" ".join([one.content["blueprint"], *_settings(one.content["settings"])])),
            Name(one.content["trial"]),
            words(one.cite("parameters")),
            words(one.cite("born_step")),
            words(one.cite("ended_step")),
            words(one.cite("flops", spec="flops")),
            words(gains[one.content["lifecycle"]]) if one.content["lifecycle"] in gains else NOTHING,
            one.content["outcome"],
            Name(one.content["reason"]),
        ]
        for one in reports(record)
    ]
    columns = [("lifecycle", True), ("place", False), ("blueprint", False), ("trial", False), ("parameters", True)]
    columns += [("born at step", True), ("ended at step", True), ("FLOPs of its arm", True)]
    unit = loss_unit(metric_name(record))
    columns += [(", ".join(filter(None, ("gain over its twin", unit))), True), ("outcome", False), ("reason", False)]
    return sheet(columns, cells, [one.content["outcome"] == "FOSSILIZED" for one in reports(record)])


def refusals_sheet(record: Record) -> Sheet | None:
    """Vetoed and refused commands, equal ones in one row; None if all were carried out."""
    equal: dict[tuple[str, str, str, str, str], list[Document]] = {}
    for one in record.of("veto", "refused"):
        event = one[1]
        where = seed_label(str(event.get("layer_id", "")), event.get("seed_id", "all"))
        key = ("vetoed" if event["event"] == "veto" else "refused", where, event["target"], event["who"])
        equal.setdefault((*key, event["reason"]), []).append(line(AUDIT, one))
    cells = [
        [
            how,
            Name(where),
            Name(target),
            Name(who),
            words(count([one.source("step") for one in found])),
            words(found[0].cite("step")),
            words(found[-1].cite("step")),
            Name(reason),
        ]
        for (how, where, target, who, reason), found in equal.items()
    ]
    columns = [("how", False), ("place", False), ("asked for", False), ("by", False), ("times", True)]
    return sheet([*columns, ("first at step", True), ("last at step", True), ("reason", False)], cells)


def settings(record: Record) -> list[dict[str, Any]]:
    """The options of the run by subject; empty without a configuration."""
    if record.config is None:
        return []
    document = Document(f"{CONFIG}#", record.config)
    growth = record.config.get("growth", {})
    listed = {name for names in GROUPS.values() for name in names}
    groups: dict[str, list[tuple[str, ...]]] = {
        "run": [(name,) for name in record.config if name != "growth"],
        **{title: [("growth", name) for name in names if name in growth] for title, names in GROUPS.items()},
        OTHERS: [("growth", name) for name in growth if name not in listed],
    }
    return [
        {"name": title, "rows": [{"name": path[-1], "value": _option(document, path)} for path in paths]}
        for title, paths in groups.items()
        if paths
    ]


def _option(document: Document, path: Sequence[str]) -> Words:
    value = document.content
    for step in path:
        value = value[step]
    if is_number(value):
        return words(document.cite(*path, spec="plain" if isinstance(value, float) else "number"))
    if value is None:
        return words("not set")
    if path[-1] == "layers" and isinstance(value, list):
        value = [place_label(str(one)) for one in value]
    return words(Name(value if isinstance(value, str) else json.dumps(value, default=str)))


def _settings(values: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]
