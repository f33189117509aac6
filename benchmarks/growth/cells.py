"""Cells: one row of one case, by one recipe, from one seed. Finished cells are files, so a benchmark can be resumed."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.growth.cases import Case
from benchmarks.machine import machine
from esper.evaluation.controls import Setting
from esper.evaluation.training import Recipe
from esper.tasks.task import Task


@dataclass(frozen=True)
class Job:
    """One cell to compute.

    Args:
        directory: where cells are kept.
        case: what is learned.
        row: name of the row.
        recipe: its learning rate and schedule.
        seed: of data, first weights, batches and grafts.
        followed: the grown cell of the same seed whose FLOPs and size the row is given; None for rows that grow.
    """

    directory: Path
    case: Case
    row: str
    recipe: Recipe
    seed: int
    followed: Path | None = None

    @property
    def path(self) -> Path:
        """Where the cell is kept."""
        return cell_path(self.directory, self.case, self.row, self.recipe, self.seed)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.case.name}, {self.row}, {told(self.recipe)}, seed {self.seed}"

    @property
    def setting(self) -> Setting:
        """What the row shares with the grown run, and its one recipe."""
        pace = self.case.pace
        return Setting(pace.batch_size, self.seed, self.seed, recipes=(self.recipe,))

    def load_task(self) -> Task:
        """Data and host of the case."""
        return self.case.load_task(self.seed)

    @property
    def is_finished(self) -> bool:
        """Whether the cell is there, and follows the grown cell as it is now."""
        return self.path.exists() and read_cell(self.path).get("followed") == fingerprint(self.followed)

    def grown(self) -> dict[str, Any]:
        """The cell that the row follows."""
        assert self.followed is not None
        return read_cell(self.followed)


def cell_path(directory: Path, case: Case, row: str, recipe: Recipe, seed: int) -> Path:
    """Where a cell is kept."""
    return directory / "cells" / case.key / row / told(recipe) / f"{seed:03d}.json"


def cells_of(directory: Path, case: Case, row: str, seed: int) -> list[Path]:
    """Where the finished cells of a row and seed are kept, by all recipes."""
    return sorted((directory / "cells" / case.key / row).glob(f"*/{seed:03d}.json"))


def told(recipe: Recipe) -> str:
    """A recipe as a name of a folder."""
    return f"{recipe.lr:g}-{recipe.schedule}"


def read_cell(path: Path) -> dict[str, Any]:
    """A finished cell."""
    cell: dict[str, Any] = json.loads(path.read_text())
    return cell


def fingerprint(path: Path | None) -> str | None:
    """Tells whether a row followed this very cell; None for rows that grow by themselves."""
    if path is None:
        return None
    about = {name: value for name, value in read_cell(path).items() if name not in ("machine", "seconds")}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def write_cell(path: Path, cell: dict[str, Any]) -> None:
    """Write a cell with the machine that it was computed on."""
    text = json.dumps({"machine": machine(), **cell}) + "\n"
    write_whole(path, lambda unfinished: unfinished.write_text(text))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: ``write`` gets another name for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    write(unfinished)
    unfinished.rename(path)


def machines(directory: Path, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What the cells were computed on, each kind once."""
    paths = (path for case in cases for path in (directory / "cells" / case.key).glob("**/*.json"))
    found = {json.dumps(read_cell(path)["machine"]) for path in paths}
    return [json.loads(text) for text in sorted(found)]
