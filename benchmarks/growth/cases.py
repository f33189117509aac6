"""What the tables are about: data, host and pace, as ``esper run`` has them by default."""

from dataclasses import dataclass
from pathlib import Path

from esper.cli.options import PACES, Pace


@dataclass(frozen=True)
class Case:
    """One table.

    Args:
        name: of the table.
        data: as ``esper run --data``.
        host: as ``esper run --host``.
        rows: of the table, the grown one first.
        seeds: paired seeds of every row unless told otherwise.
    """

    name: str
    data: str
    host: str
    rows: tuple[str, ...]
    seeds: int

    @property
    def pace(self) -> Pace:
        """How long and fast the host trains."""
        return PACES[self.host]


ALL_ROWS = ("grown", "host_on", "static", "widened", "placebo")
MAIN_ROWS = ("grown", "host_on", "static")


def cases(text: Path | None) -> list[Case]:
    """All tables; that of the transformer needs a text to learn from."""
    found = [
        Case("digits", "digits", "mlp", ALL_ROWS, 10),
        Case("mnist1d", "mnist1d", "mlp", ALL_ROWS, 10),
        Case("mnist1d-cnn", "mnist1d", "cnn", MAIN_ROWS, 5),
    ]
    if text is not None:
        found.append(Case("text-gpt", f"text:{text}", "gpt", MAIN_ROWS, 5))
    return found
