"""Writes the tables of docs/run-directory.md: every kind of event with its fields, from their classes."""

from pathlib import Path

from esper.contracts.events import described

PAGE = Path(__file__).parent.parent / "docs" / "run-directory.md"


def page() -> str:
    """The page: its own words, and what follows from the classes."""
    return PAGE.read_text().partition("### `")[0] + described() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
