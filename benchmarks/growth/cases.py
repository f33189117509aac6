"""What the tables are about: data, host, pace, and what is asked of growth there."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from esper.cli.options import PACES, TEXT, Pace
from esper.evaluation.training import Recipe

LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Peak learning rates: where a row's best one is at an end of those that were tried, the next one is tried too."""

MANY_TUNING_SEEDS = tuple(range(900, 910))
"""For digits: its runs are short, and at the rates that are best for most hosts some fail, which three may not show."""

TRAINED = Recipe(5e-3, "cosine")
"""How a host is trained that is there already, unless the case says otherwise."""


@dataclass(frozen=True)
class Case:
    """One table.

    Args:
        name: of the table.
        data: as ``esper run --data``.
        host: as ``esper run --host``.
        pace: how long and fast the host trains; its learning rate is that of ``grown_default``.
        margin: points of accuracy below a static network at which growth still counts as no worse.
        wide: factor of the hidden widths at which growth should be refused, for the rows of wide hosts.
        rates: peak learning rates with which the search begins, of all rows alike, out of ``LADDER``.
        tuning_seeds: on which learning rates are searched; no row is compared on them.
        trained: how the trained hosts of the sunk-cost rows were trained before, for as many steps as the pace has.
    """

    name: str
    data: str
    host: str
    pace: Pace
    margin: float = 0.5
    wide: float = 16.0
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    tuning_seeds: tuple[int, ...] = (900, 901, 902)
    trained: Recipe = TRAINED

    def __post_init__(self) -> None:
        if not set(self.rates) <= set(LADDER):
            raise ValueError(f"{self.name} begins with rates that are not in the ladder: {self.rates}.")

    @property
    def key(self) -> str:
        """Name, and a digest of all that cells depend on beside row, recipe and seed: data, host, number of steps,
        width of wide hosts, how trained ones were trained.

        Data are told by the content of their file; of one that is not there, and of built-in ones, by their name.
        """
        path = Path(self.data.removeprefix(TEXT))
        data = _digest(path) if path.is_file() else self.data
        steps = (self.pace.epochs, self.pace.batch_size, self.pace.steps_per_epoch)
        about = json.dumps([data, self.host, steps, self.wide, asdict(self.trained)])
        return f"{self.name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cases(text: Path | None = None, npz: tuple[Path, ...] = ()) -> list[Case]:
    """All tables; those of the text need a text to learn from, and any ``.npz`` is a table of its own."""
    found = [
        Case("digits", "digits", "mlp", PACES["mlp"], 1.5, rates=(1e-3, 3e-3, 1e-2), tuning_seeds=MANY_TUNING_SEEDS),
        Case("mnist1d", "mnist1d", "mlp", PACES["mlp"], margin=1.5),
        Case("mnist1d-cnn", "mnist1d", "cnn", PACES["cnn"], 1.5, wide=4.0, trained=Recipe(3e-2, "cosine")),
    ]
    if text is not None:
        mlp, gpt = PACES["mlp on text"], PACES["text"]
        found.append(Case("text-mlp", f"text:{text}", "mlp", mlp, wide=8.0, trained=Recipe(2e-2, "cosine")))
        found.append(Case("text-gpt", f"text:{text}", "gpt", gpt, wide=4.0, trained=Recipe(1e-2, "cosine")))
    return found + [Case(path.stem, str(path), "mlp", PACES["mlp"], rates=(1e-3, 3e-3, 1e-2)) for path in npz]
