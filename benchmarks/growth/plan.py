"""What is to be computed, and in which order: learning rates first, then all seeds; rows that grow before those that
follow them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.growth.cases import Case
from benchmarks.growth.cells import Job, cell_path, read_cell
from benchmarks.growth.rows import ROWS, SECONDARY_CASES, shipped
from esper.evaluation.training import Recipe


@dataclass(frozen=True)
class Plan:
    """Which cells there shall be.

    Args:
        directory: where cells are kept.
        cases: of the tables.
        rows: by name; None takes all that a case has by default.
        seeds: of every row; None takes each row's own.
        tuning_seeds: on which learning rates are searched; None takes each case's own.
    """

    directory: Path
    cases: Sequence[Case]
    rows: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    tuning_seeds: Sequence[int] | None = None

    def rows_of(self, case: Case) -> list[str]:
        """Rows of a case, by name."""
        if self.rows is not None:
            return list(self.rows)
        if case.rows:
            return list(case.rows)
        has_all = case.name in SECONDARY_CASES
        return [name for name, kind in ROWS.items() if has_all or kind.is_headline]

    def seeds_of(self, row: str) -> Sequence[int]:
        """Seeds of a row's cells."""
        return ROWS[row].seeds if self.seeds is None else self.seeds

    def tuning_seeds_of(self, case: Case) -> Sequence[int]:
        """Seeds on which learning rates are searched."""
        return case.tuning_seeds if self.tuning_seeds is None else self.tuning_seeds

    def phases(self) -> Iterator[list[Job]]:
        """Jobs that do not depend on each other, phase by phase; ask for the next once a phase is computed."""
        for follows in (False, True):
            yielded: set[Path] = set()
            while tuning := [
                job
                for case, row in self._pairs(follows=follows)
                for job in self._tuning(case, row)
                if job.path not in yielded
            ]:
                yield tuning
                yielded |= {job.path for job in tuning}
            yield [job for case, row in self._pairs(follows=follows) for job in self._final(case, row)]

    def cells(self, case: Case, row: str, recipe: Recipe, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Finished cells of a row, by seed; none that followed another grown cell than the one that is there now."""
        jobs = self._jobs(case, row, [recipe], seeds)
        return {job.seed: read_cell(job.path) for job in jobs if job.is_finished}

    def choice(self, case: Case, row: str) -> Recipe | None:
        """The recipe of a row: best by mean *select* loss over the tuning seeds; None until all were tried."""
        recipes = self.recipes(case, row)
        return recipes[0] if len(recipes) == 1 else self._best(case, row, recipes)

    def recipes(self, case: Case, row: str) -> list[Recipe]:
        """Those to search: of the case's rates, and of the next one as long as the best is at an end of them.

        So nobody is held back by where the grid ends. A row without schedules takes the shipped recipe.
        """
        if not ROWS[row].schedules:
            return [shipped(case)]
        schedules, rates = case.schedules or ROWS[row].schedules, set(case.rates)
        while True:
            recipes = [Recipe(lr, schedule) for schedule in schedules for lr in sorted(rates)]
            best = self._best(case, row, recipes)
            beyond = set() if best is None else _neighbours(best.lr, case.ladder) - rates
            if not beyond:
                return recipes
            rates |= beyond

    def tuning(self, case: Case, row: str) -> dict[str, float | None]:
        """Mean *select* loss of every recipe that was tried; None where a run diverged."""
        losses = ((recipe, self._tuned(case, row, recipe)) for recipe in self.recipes(case, row))
        return {
            f"{recipe.lr:g} {recipe.schedule}": loss if math.isfinite(loss) else None
            for recipe, loss in losses
            if loss is not None
        }

    def waiting(self) -> dict[str, str]:
        """Rows that cannot be computed yet, or not here, and why."""
        told = {}
        for case in self.cases:
            for row in self.rows_of(case):
                followed = ROWS[row].follows
                if (reason := ROWS[row].obstacle(case)) is not None:
                    told[f"{case.name}, {row}"] = reason
                elif followed is not None and self.choice(case, followed) is None:
                    told[f"{case.name}, {row}"] = f"follows {followed}, which is not there yet"
                elif self.choice(case, row) is None:
                    left = [job.name for job in self._tuning(case, row) if not job.is_finished]
                    missing = "; ".join(left[:2]) + ("; ..." if len(left) > 2 else "")
                    told[f"{case.name}, {row}"] = f"its learning rate is not searched yet; missing: {missing}"
        return told

    def _pairs(self, *, follows: bool) -> Iterator[tuple[Case, str]]:
        for case in reversed(self.cases):  # the longest first
            for row in self.rows_of(case):
                if (ROWS[row].follows is not None) == follows and ROWS[row].obstacle(case) is None:
                    yield case, row

    def _tuning(self, case: Case, row: str) -> list[Job]:
        recipes = self.recipes(case, row)
        return self._jobs(case, row, recipes, self.tuning_seeds_of(case)) if len(recipes) > 1 else []

    def _final(self, case: Case, row: str) -> list[Job]:
        recipe = self.choice(case, row)
        return [] if recipe is None else self._jobs(case, row, [recipe], self.seeds_of(row))

    def _jobs(self, case: Case, row: str, recipes: Sequence[Recipe], seeds: Sequence[int]) -> list[Job]:
        """Those whose grown run is there."""
        followed = ROWS[row].follows
        if followed is None:
            return [Job(self.directory, case, row, recipe, seed) for recipe in recipes for seed in seeds]
        grown = self.choice(case, followed)
        if grown is None:
            return []
        paths: Mapping[int, Path] = {seed: cell_path(self.directory, case, followed, grown, seed) for seed in seeds}
        return [
            Job(self.directory, case, row, recipe, seed, paths[seed])
            for recipe in recipes
            for seed in seeds
            if paths[seed].exists()
        ]

    def _best(self, case: Case, row: str, recipes: Sequence[Recipe]) -> Recipe | None:
        """None until all were tried; the first of those that are equally good."""
        losses = {recipe: self._tuned(case, row, recipe) for recipe in recipes}
        found = {recipe: loss for recipe, loss in losses.items() if loss is not None}
        return min(found, key=found.__getitem__) if len(found) == len(recipes) else None

    def _tuned(self, case: Case, row: str, recipe: Recipe) -> float | None:
        seeds = self.tuning_seeds_of(case)
        cells = self.cells(case, row, recipe, seeds)
        if len(cells) < len(seeds):
            return None
        losses = [cell["val_loss"] for cell in cells.values()]
        return math.inf if None in losses else fmean(losses)


def _neighbours(rate: float, ladder: Sequence[float]) -> set[float]:
    """Rates next to one in the ladder."""
    index = ladder.index(rate)
    return {*ladder[max(0, index - 1) : index], *ladder[index + 1 : index + 2]}
