"""``esper sweep``: runs what is missing of a sweep and tells what came of it."""

from functools import partial
from pathlib import Path

from esper.cli.commands.sweep import SweepCommand
from esper.cli.sweep_trial import TRIALS, run_trial
from esper.contracts.errors import ConfigError
from esper.evaluation.sweep import on_pool, on_ray, words
from esper.evaluation.sweep.course import Course, Engine
from esper.evaluation.sweep.page import PAGE, page
from esper.evaluation.sweep.plan import Trial
from esper.evaluation.sweep.record import STATE, TABLE, Sweep, continued, read
from esper.flags.lock import held
from esper.observability.report import write_page
from esper.runtime.interrupt import Interrupt

ENGINES: dict[str, Engine] = {"pool": on_pool.run, "ray": on_ray.run}
_LOCK = ".sweep.lock"


def sweep(asked: SweepCommand) -> bool:
    """Run what is missing, and write ``sweep.json``, ``sweep.csv`` and ``sweep.html``; gives whether any trial is well.

    Raises:
        ConfigError: if the directory holds another sweep, or another process has it; nothing is run then.
        KeyboardInterrupt: if interrupted; the same command goes on.
    """
    plan, directory = asked.wanted.plan, asked.wanted.output.absolute()
    _check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shown = _shown(directory)
    with Interrupt() as interrupt, held(directory / _LOCK, f"the sweep in {shown}"):
        stored = read(directory)
        begun = Sweep(plan) if stored is None else continued(stored, plan)
        course = Course(begun, directory, partial(_progress, len(plan.trials)))
        waiting = begun.waiting
        workers = min(asked.wanted.workers, max(1, len(waiting)))
        print(words.beginning(begun, waiting, workers, shown), flush=True)
        work = partial(run_trial, directory, plan.asha)
        try:
            if waiting:
                ENGINES[asked.engine](work, waiting, workers, course)
        except KeyboardInterrupt:
            interrupt.ignore()
            print("interrupted: the same command goes on", flush=True)
            raise
        finally:
            write_page(directory / PAGE, page(course.sweep, directory))
    words.show(course.sweep)
    told = f"all numbers are in {shown / STATE} and {TABLE}, all runs in {shown / TRIALS}"
    print(f"\nLook at {shown / PAGE}; {told}")
    return bool(course.sweep.of("finished") or course.sweep.of("stopped"))


def _progress(count: int, sweep: Sweep, trial: Trial) -> None:
    print(words.progress(sweep, trial, count), flush=True)


def _shown(directory: Path) -> Path:
    """As people would type it."""
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--output {directory} is a file. Name a directory.")
    if directory.is_dir() and not (directory / STATE).is_file():
        others = sorted(path.name for path in directory.iterdir() if path.name != _LOCK)
        if others:
            raise ConfigError(f"--output {directory} holds something else ({others[0]}). Name another directory.")
