"""Writes the tables of docs/metrics.md: every metric, from the catalogue."""

from pathlib import Path

from esper.observability.metrics.catalogue import NEEDS, SECTIONS, Metric

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

BEGIN = "## The catalogue\n"


def page() -> str:
    """The page: its own words, and what follows from the catalogue."""
    lines = [PAGE.read_text().partition(BEGIN)[0] + BEGIN]
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
