"""What is known of a sweep, as it lies in ``sweep.json``: state to go on from, and the result; also as a table."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from esper.contracts.errors import ConfigError
from esper.evaluation.kept_state import read_kept
from esper.evaluation.sweep.plan import Asha, Plan, Trial, flat
from esper.whole_file import write_whole

FORMAT = 1
STATE, TABLE = "sweep.json", "sweep.csv"
MEASURES = ("held_out_loss", "held_out_metric", "test_loss", "test_metric", "parameters", "grown", "train_flops")
"""What is measured of a trial; with the same trials it is the same, whichever engine ran them."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Args:
        state: it trained to its end, was stopped early, or failed.
        measures: by name in ``MEASURES``, and ``epochs``, ``seconds``; of one that was stopped, as it was then.
        reason: why it failed or was stopped; None for one that is finished.
    """

    state: Literal["finished", "stopped", "failed"]
    measures: Mapping[str, float | None] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What a trial had reached at a rung.

    Args:
        number: of the trial.
        epoch: of the rung.
        value: of the metric; what is not finite as the worst.
        goes_on: what was decided.
    """

    number: int
    epoch: int
    value: float
    goes_on: bool


@dataclass(frozen=True)
class Sweep:
    """A sweep, under way or over.

    Args:
        plan: what it is to do.
        outcomes: by the number of the trial; those that are not there are not over.
        reports: at rungs, as they came.
    """

    plan: Plan
    outcomes: Mapping[int, Outcome] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()

    def of(self, state: str) -> list[Trial]:
        """Trials of which this became."""
        return [
            one for one in self.plan.trials if one.number in self.outcomes and self.outcomes[one.number].state == state
        ]

    @property
    def waiting(self) -> list[Trial]:
        """Trials that are to be run, or to go on. Failed ones are tried again, when a sweep goes on."""
        return [one for one in self.plan.trials if one.number not in self.outcomes]


def write(directory: Path, sweep: Sweep) -> None:
    """Write both files, each as a whole or not at all."""
    values = {"format": FORMAT, **asdict(sweep)}
    write_whole(directory / STATE, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerows(_lines(sweep))
    write_whole(directory / TABLE, text.getvalue().encode())


def read(directory: Path) -> Sweep | None:
    """What :func:`write` wrote; None if there is nothing yet.

    Raises:
        ConfigError: if it is damaged, or of another version.
    """
    return read_kept(directory / STATE, FORMAT, _built)


def _built(values: dict[str, Any]) -> Sweep:
    plan = values["plan"]
    trials = tuple(Trial(**one) for one in plan["trials"])
    asha = None if plan["asha"] is None else Asha(**plan["asha"])
    return Sweep(
        Plan(**plan | {"trials": trials, "asha": asha}),
        {int(number): Outcome(**one) for number, one in values["outcomes"].items()},
        tuple(Report(**one) for one in values["reports"]),
    )


def continued(stored: Sweep, plan: Plan) -> Sweep:
    """A sweep that goes on.

    Raises:
        ConfigError: if another one was begun; it says what differs.
    """
    differences = list(_differences(stored.plan, plan))
    if differences:
        raise ConfigError(
            f"The sweep in this directory was begun otherwise: {'; '.join(differences[:3])}. Name another directory by "
            "--output, or put back what it was."
        )
    over = {number: one for number, one in stored.outcomes.items() if one.state != "failed"}
    return Sweep(plan, over, stored.reports)


def _differences(old: Plan, new: Plan) -> Iterator[str]:
    for name in ("metric", "mode", "asha"):
        was, now = (asdict(plan)[name] for plan in (old, new))
        if was != now:
            yield f"{name} was {_told(was)} and is {_told(now)}"
    names = dict.fromkeys(name for plan in (old, new) for trial in plan.trials for name in flat(trial.values))
    before, after = (_plain(plan) for plan in (old, new))
    for name in names:
        was, now = ([one.get(name) for one in plan] for plan in (before, after))
        if list(dict.fromkeys(map(_told, was))) != list(dict.fromkeys(map(_told, now))):
            yield f"{name} was {_listed(was)} and is {_listed(now)}"
    if len(before) != len(after):
        yield f"it had {len(before)} trials and has {len(after)}"
    elif before != after:
        yield "its trials stand in another order"


def _plain(plan: Plan) -> list[dict[str, Any]]:
    plain: list[dict[str, Any]] = json.loads(json.dumps([flat(trial.values) for trial in plan.trials]))
    return plain


def _told(value: Any) -> str:
    return json.dumps(value)


def _listed(values: list[Any]) -> str:
    different = list(dict.fromkeys(map(_told, values)))
    return ", ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")


def _lines(sweep: Sweep) -> Iterator[list[Any]]:
    names = list(sweep.plan.trials[0].parameters)
    measures = [*MEASURES, "epochs", "seconds"]
    yield ["trial", *names, "state", *measures, "reason"]
    for trial in sweep.plan.trials:
        outcome = sweep.outcomes.get(trial.number)
        state = "waiting" if outcome is None else outcome.state
        known = {} if outcome is None else outcome.measures
        cells = [_cell(trial.parameters[name]) for name in names]
        reason = None if outcome is None else outcome.reason
        yield [trial.number, *cells, state, *(known.get(name) for name in measures), reason]


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else _told(value)
