"""What the tables are about: data, host, pace, and what is asked of growth there."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from esper.cli.options import PACES, TEXT, Pace
from esper.evaluation.training import Recipe
from esper.tasks.catalogue import load_task
from esper.tasks.placed import placed
from esper.tasks.task import Precision, Task

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
        ladder: rates that may be tried.
        schedules: searched for every row in place of the row's own; none leaves those.
        rows: that it has unless told otherwise; none leaves that to the plan.
        digest: of data that are more than a file.
        host_settings: as ``esper run --host-settings``.
        growth: settings of growth that are not the defaults.
        before: the case in which the hosts of the sunk-cost rows were trained; None takes this one.
        precision: as ``esper run --precision``.
        is_compiled: as ``esper run --compile``.
        device: as ``esper run --device``; cells of one device are taken for those of another.
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
    ladder: tuple[float, ...] = LADDER
    schedules: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    digest: str | None = None
    host_settings: tuple[tuple[str, int], ...] = ()
    growth: tuple[tuple[str, Any], ...] = ()
    before: Self | None = None
    precision: Precision = "fp32"
    is_compiled: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not set(self.rates) <= set(self.ladder):
            raise ValueError(f"{self.name} begins with rates that are not in the ladder: {self.rates}.")

    @property
    def key(self) -> str:
        """Name, and a digest of all that cells depend on beside row, recipe and seed: data, host, number of steps,
        width of wide hosts, how trained ones were trained, and what else is not as in other cases.

        Data are told by their digest, or by the content of their file; of one that is not there, and of built-in ones,
        by their name.
        """
        path = Path(self.data.removeprefix(TEXT))
        data = self.digest or (_digest(path) if path.is_file() else self.data)
        steps = (self.pace.epochs, self.pace.batch_size, self.pace.steps_per_epoch)
        about = [data, self.host, steps, self.wide, asdict(self.trained)]
        before = None if self.before is None else self.before.key
        further = [self.host_settings, self.growth, before, self.precision]
        further += [self.is_compiled] * self.is_compiled
        told = json.dumps(about if further == [(), (), None, "fp32"] else about + further)
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"

    def load_task(self, seed: int) -> Task:
        """Data, dealt by ``seed``, and host, on the device and in the precision of the case."""
        task = load_task(self.data, seed, self.host, host_settings=dict(self.host_settings))
        return placed(task, self.device, self.precision, is_compiled=self.is_compiled)


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
