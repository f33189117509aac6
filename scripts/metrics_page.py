"""Writes the tables of docs/metrics.md: every metric, from the catalogue, and what being watched costs, as recorded."""

import json
from pathlib import Path

from benchmarks.watching.overhead import markdown
from esper.observability.metrics.catalogue import NEEDS, SECTIONS, Metric

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "metrics.md"
OVERHEAD = ROOT / "benchmarks" / "results" / "watching" / "overhead.json"

BEGIN = "## Measured\n"
MEASURED = """
The same run with metrics (read every second), traces and TensorBoard, and without any of it, in turns step by step in
one process on an idle machine: wall clock, medians, and all of what a scrape takes. Weights end with the same bytes
(`python -m benchmarks.watching overhead`, [with the machine](../benchmarks/results/watching/overhead.json)).
"""


def page() -> str:
    """The page: its own words, and what follows from the catalogue."""
    own = PAGE.read_text().partition(BEGIN)[0]
    found = json.loads(OVERHEAD.read_text())["result"]
    lines = [own + BEGIN + MEASURED, markdown(found), "", "## The catalogue", ""]
    for title, metrics in SECTIONS.items():
        rows = [_row(one) for one in metrics]
        lines += [
            f"### {title}\n",
            "| metric | kind | unit | labels | meaning | from |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _row(one: Metric) -> str:
    only = f" Only with {NEEDS[one.needs]}." if one.needs else ""
    labels = ", ".join(f"`{name}`" for name in one.labels)
    return f"| `{one.name}` | {one.kind} | {one.unit or '-'} | {labels or '-'} | {one.meaning}{only} | {one.source} |"


if __name__ == "__main__":
    PAGE.write_text(page())
