"""A comparison as one HTML file."""

import math
from typing import Any

from esper.evaluation.ab.metrics import Metric
from esper.evaluation.ab.record import Arrived, Comparison
from esper.evaluation.ab.verdict import Finding
from esper.evaluation.ab.words import COLUMNS, READING, change, headline, number, outputs, row, story
from esper.observability.report import render
from esper.observability.sheets import sheet

PAGE = "ab.html"
_WIDTH = 1000.0


def page(comparison: Comparison) -> str:
    """The page.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    found = [(metric, comparison.findings[metric.name]) for metric in comparison.metrics if comparison.findings]
    numeric = ("A", "B", "difference", "effect size")
    values = {
        "title": f"{comparison.names[0]} against {comparison.names[1]}",
        "headline": headline(comparison),
        "story": story(comparison),
        "suspicion": comparison.suspicion,
        "reading": READING,
        "verdicts": sheet([(name, name in numeric) for name in COLUMNS], [row(*one) for one in found]),
        "strips": [_strip(comparison, *one) for one in found],
        "outputs": outputs(comparison),
        "pairs": _pairs(comparison) or {"columns": [], "rows": []},
        "settings": _settings(comparison),
    }
    return render("ab.html.j2", values)


def _strip(comparison: Comparison, metric: Metric, found: Finding) -> dict[str, Any]:
    """The picture of a metric: where its differences and its interval lie."""
    differences = [
        metric.difference(pair.a.metrics[metric.name], pair.b.metrics[metric.name])
        for pair in comparison.pairs
        if pair.a.metrics is not None and pair.b.metrics is not None
    ]
    margin = [] if metric.bound is None else [-metric.bound, metric.bound]
    shown = [0.0, *differences, *margin, *filter(math.isfinite, (found.low, found.high))]
    low, high = min(shown), max(shown)
    room = 0.04 * (high - low) or 1.0

    def at(value: float) -> float:
        inside = min(max(value, low - room), high + room)
        return round(_WIDTH * (inside - low + room) / (high - low + 2 * room), 2)

    def span(one: float, other: float) -> tuple[float, float]:
        return at(one), round(max(at(other) - at(one), 2.0), 2)

    words = row(metric, found)
    return {
        "title": words[0],
        "verdict": found.verdict,
        "words": f"{found.verdict}: {words[4]}, {words[5]}",
        "margin": span(*margin) if margin else None,
        "range": span(found.low, found.high) if math.isfinite(found.low) or math.isfinite(found.high) else None,
        "zero": at(0.0),
        "marks": [at(value) for value in differences],
        "ends": [change(metric, low - room), change(metric, high + room)],
    }


def _pairs(comparison: Comparison) -> dict[str, Any] | None:
    names = [metric.name for metric in comparison.metrics]
    columns = [("pair", True), ("seed", True), ("first", False), ("side", False), *((name, True) for name in names)]
    cells = []
    for index, pair in enumerate(comparison.pairs, 1):
        for side, unit in (("A", pair.a), ("B", pair.b)):
            cells.append([index, pair.seed, pair.order[0], side, *_values(unit, names)])
    return sheet([*columns, ("failed", False)], cells)


def _values(unit: Arrived, names: list[str]) -> list[str]:
    metrics = unit.metrics or {}
    return [*(number(metrics[name]) if name in metrics else "-" for name in names), unit.failed or ""]


def _settings(comparison: Comparison) -> list[tuple[str, str]]:
    plan = comparison.plan
    margins = [f"{name} {text}" for name, text in plan.wishes.margins.items()]
    levels = [f"{metric.name} {metric.alpha:.3g}" for metric in comparison.metrics]
    return [
        ("pairs at most", str(plan.max_pairs)),
        ("error over all looks and metrics", f"{plan.alpha:g}"),
        ("error of each", ", ".join(levels) or "-"),
        ("margins", ", ".join(margins) or "none: nothing can be equivalent"),
        ("first seed", str(plan.first_seed)),
    ]
