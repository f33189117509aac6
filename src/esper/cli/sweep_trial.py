"""One trial of a sweep: a run as ``esper run`` makes it, in a directory of its own, which goes on where it was cut."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from esper.cli.options import request
from esper.cli.run import run
from esper.cli.run_directory import PROGRESS, RESULT, has_checkpoint, read_json
from esper.contracts.errors import EsperError
from esper.evaluation.sweep.course import stopped
from esper.evaluation.sweep.plan import Asha, Trial
from esper.evaluation.sweep.record import Outcome
from esper.flags.lock import held
from esper.runtime.session import Session

TRIALS = "trials"
"""Folder of the run directories, in that of the sweep."""

_WAIT_S = 60.0


class _StoppedEarlyError(Exception):
    """The trial is behind others."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


def run_trial(directory: Path, asha: Asha | None, trial: Trial, tell: Callable[[Mapping[str, Any]], bool]) -> Outcome:
    """Run a trial, or go on with it, and say what became of it. What it prints goes to a file beside its directory.

    Args:
        directory: of the sweep.
        asha: which trials end early.
        trial: which one.
        tell: told what the trial has reached at every rung; gives whether it goes on.
    """
    place = directory / TRIALS / trial.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        held(place.with_suffix(".lock"), f"trial {trial.number}", _WAIT_S),  # whoever had it may just be dying
        place.with_suffix(".log").open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            _run(place, () if asha is None else asha.rungs(trial.values["epochs"]), trial, tell)
            return _finished(place, trial)
        except _StoppedEarlyError as end:
            return end.outcome
        except (EsperError, OSError) as error:
            return Outcome("failed", reason=str(error))


def _run(place: Path, rungs: tuple[int, ...], trial: Trial, tell: Callable[[Mapping[str, Any]], bool]) -> None:
    if (place / RESULT).exists():
        return
    if not (goes_on := has_checkpoint(place)):
        shutil.rmtree(place, ignore_errors=True)
    told: set[int] = set()

    def after_epoch(session: Session) -> None:
        for rung in rungs:
            if rung <= session.epoch and rung not in told:  # one may have been cut before it could tell
                told.add(rung)
                measures = _at(session, rung, place)
                if not tell(measures):
                    raise _StoppedEarlyError(stopped(measures))

    options = replace(request(trial.values).options, output=str(place), plain=True)
    run(options, place if goes_on else None, after_epoch)


def _at(session: Session, rung: int, place: Path) -> dict[str, Any]:
    """What a trial has reached at a rung."""
    event = next(one for one in reversed(session.events) if one["event"] == "epoch" and one["epoch"] == rung)
    return {
        "held_out_loss": event["val_loss"],
        "held_out_metric": event["val_metric"],
        "train_flops": event["run_flops"] + event["arm_flops"] + event["judging_flops"],
        "epochs": rung,
        "seconds": read_json(place / PROGRESS).get("seconds"),
    }


def _finished(place: Path, trial: Trial) -> Outcome:
    result = read_json(place / RESULT)
    row = result["rows"]["grown"]
    return Outcome(
        "finished",
        {
            "held_out_loss": row["val_loss"],
            "held_out_metric": row["val_metric"],
            "test_loss": row["test_loss"],
            "test_metric": row["test_metric"],
            "parameters": row["parameters"],
            "grown": sum(one["outcome"] == "FOSSILIZED" for one in result["lifecycles"]),
            "train_flops": row["train_flops"],
            "epochs": trial.values["epochs"],
            "seconds": row["seconds"],
        },
    )
