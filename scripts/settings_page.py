"""Writes docs/settings.md: all settings of growth, grouped by who reads them, from their docstrings."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

from esper.contracts.config import PARTS

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

TITLES = {
    "PlaceSettings": "Where seeds sit, and what they sense",
    "ControllerSettings": "When, and with what",
    "BudgetSettings": "How much: budgets",
    "TrialSettings": "How candidates are tried, and what a graft must prove",
    "GraftTrainingSettings": "How grafts train",
    "WatchSettings": "When something fails",
}

HEAD = """# Settings

All settings of `esper.GrowthConfig`, by what they are for. None needs to be set: the defaults are what
[the tables](growth.md) were made with. In `esper run --config FILE` they stand under `growth:`, and the most used ones
are options of the command line (`esper run --help`). Fractions are of the run's planned steps unless said otherwise.
`make docs` writes this page.

The five that are worth knowing first: `layers` (where), `max_rounds` (0 never grows), `capacity_per_round` (how large),
`max_train_flops` (what growth may cost in all), `seed`.
"""


def meanings(part: type) -> dict[str, str]:
    """What the docstring of a part says of every setting."""
    text = inspect.cleandoc(part.__doc__ or "").partition("Args:\n")[2]
    found = re.split(r"^    (\w+): ", text, flags=re.MULTILINE)[1:]
    return {name: " ".join(said.split()) for name, said in zip(found[::2], found[1::2], strict=True)}


def page() -> str:
    """The page."""
    lines = [HEAD]
    for part in PARTS:
        said = meanings(part)
        rows = [f"| `{one.name}` | `{one.default!r}` | {said[one.name].replace('``', '`')} |" for one in fields(part)]
        lines += [f"## {TITLES[part.__name__]}", "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
