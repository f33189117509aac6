"""``esper run``: grow a network on a task, then tell what that was worth."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from esper.blueprints.catalogue import make_blueprint
from esper.cli import run_directory
from esper.cli.closing import table, worth
from esper.cli.interrupt import Interrupt
from esper.cli.model_files import write_model
from esper.cli.options import Options
from esper.cli.progress import Progress
from esper.cli.run_directory import CHECKPOINTS, MODEL, PROGRESS, RESULT, read_json, write_json
from esper.contracts.errors import ConfigError, EsperError
from esper.evaluation.controls import Setting, host_on, static
from esper.evaluation.growing import SCHEDULE, Growing, growing
from esper.evaluation.row import Row, measured
from esper.kasmina.export import export
from esper.kasmina.strategies import strategy_kind
from esper.tamiyo.heuristic import Policy
from esper.tamiyo.policies import make_policy
from esper.tasks.catalogue import load_task
from esper.tasks.task import Task

CHECKPOINT_STEPS = 100


def run(options: Options, directory: Path | None) -> None:
    """Run to the end and write ``result.json``.

    A host of the user's own is imported from the current directory or the Python path.

    Args:
        options: what to do.
        directory: of the run to resume; None starts a new one.

    Raises:
        KeyboardInterrupt: if interrupted; the run can be resumed then.
    """
    if directory is not None and (directory / RESULT).exists():
        print(f"The run in {directory} is finished.\n")
        _print_closing(read_json(directory / RESULT), directory)
        return
    torch.set_num_threads(options.threads)
    if ":" in options.host and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    task = load_task(options.data, options.seed, options.host)
    policy = _policy(options)
    is_new = directory is None
    directory = run_directory.create(options, task.name) if directory is None else directory
    try:
        growth = _prepare(options, task, policy, directory, is_new)
        seconds = _train(growth, directory)
        _conclude(options, task, growth, directory, seconds)
    except KeyboardInterrupt:
        print(f"Interrupted; everything is saved. Go on with: esper run --resume last --output {directory}", flush=True)
        raise


def _policy(options: Options) -> Policy:
    """The controller; refuses names that are not known before anything is written."""
    for blueprint in options.growth.blueprints:
        make_blueprint(blueprint, {})
    if options.growth.strategy is not None:
        strategy_kind(options.growth.strategy)
    return make_policy(options.policy, options.growth)


def _prepare(options: Options, task: Task, policy: Policy, directory: Path, is_new: bool) -> Growing:
    """A run at its start, or where its checkpoint stands."""
    progress = Progress(options.epochs, _heading(task, directory))
    try:
        growth = growing(
            task,
            options.growth,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=options.seed,
            steps_per_epoch=options.steps_per_epoch,
            policy=policy,
            directory=directory,
            checkpoint_steps=CHECKPOINT_STEPS,
            on_event=progress,
        )
    except EsperError:
        if is_new:
            run_directory.discard(directory)
        raise
    if run_directory.has_checkpoint(directory):
        growth.session.load(directory / CHECKPOINTS)
        progress.say(f"resumed      after {growth.session.step_count} steps")
    return growth


def _train(growth: Growing, directory: Path) -> float:
    """Train to the end; gives the seconds that it took, interruptions left out."""
    session = growth.session
    spent = float(read_json(directory / PROGRESS).get("seconds", 0.0))
    if any(event["event"] == "finished" for event in session.events):
        return spent
    started = time.perf_counter() - spent
    with Interrupt() as interrupt:
        for _ in range(session.epoch, growth.epochs):
            for batch in growth.loader:
                session.step(batch)
                if interrupt.requested:
                    session.save(directory / CHECKPOINTS)
                    _note_progress(directory, time.perf_counter() - started, {})
                    raise KeyboardInterrupt
            session.after_epoch()
            _note_progress(directory, time.perf_counter() - started, {})
        session.finish()
        seconds = time.perf_counter() - started
        _note_progress(directory, seconds, {})
        if interrupt.requested:
            raise KeyboardInterrupt
    return seconds


def _conclude(options: Options, task: Task, growth: Growing, directory: Path, seconds: float) -> None:
    """Export the grown network, train the controls that are still missing, and write the result."""
    plain, session = export(growth.model), growth.session
    if not (directory / MODEL).exists():
        fault = write_model(directory / MODEL, plain, task)
        if fault is not None:
            print(f"note         the model is stored without a graph: {fault}")
    grown = measured(
        plain,
        task,
        options.growth.seed,
        train_flops=session.train_flops,
        seconds=seconds,
        lr=options.lr,
        schedule=SCHEDULE,
    )
    rows: dict[str, Any] = {"grown": grown.to_dict(), "host_on": None, "static": None}
    reasons: dict[str, str] = {}
    if options.controls:
        controls, reasons = _controls(options, task, grown, directory, seconds)
        rows |= controls
    else:
        reasons = dict.fromkeys(("host_on", "static"), "left out by --no-controls")
    result = {
        "seed": options.seed,
        "task": task.name,
        "host": options.host,
        "metric": task.metric,
        "rows": rows,
        "reasons": reasons,
        "lifecycles": [report.to_dict() for report in session.field_reports],
        "probe_flops": session.probe_flops,
        "planned_steps": growth.epochs * len(growth.loader),
    }
    write_json(directory / RESULT, result)
    (directory / PROGRESS).unlink(missing_ok=True)
    _print_closing(result, directory)


def _controls(
    options: Options, task: Task, grown: Row, directory: Path, seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Rows of the controls, and why one is missing; one that was finished before an interruption is kept."""
    setting = Setting(batch_size=options.batch_size, seed=options.seed, split_seed=options.growth.seed)
    rows: dict[str, Any] = read_json(directory / PROGRESS).get("rows", {})
    reasons: dict[str, str] = {}
    kinds: dict[str, Callable[[], Row]] = {
        "host_on": lambda: host_on(task, grown.train_flops, setting),
        "static": lambda: static(task, grown.train_flops, grown.parameters, setting),
    }
    for name, train in kinds.items():
        if name in rows:
            continue
        if name == "static" and rows["host_on"]["parameters"] == grown.parameters:
            rows[name] = rows["host_on"]  # nothing grew: the same network, from the same bytes
            continue
        if name == "static" and not task.is_scalable:
            rows[name], reasons[name] = None, "the host's factory takes no width_factor"
            continue
        print(
            f"control      {name}: {grown.train_flops / 1e6:,.1f} M training FLOPs, learning rate searched", flush=True
        )
        try:
            rows[name] = train().to_dict()
        except ConfigError as error:  # a factory whose size does not follow its width_factor
            rows[name], reasons[name] = None, str(error)
            continue
        _note_progress(directory, seconds, rows)
    return rows, reasons


def _note_progress(directory: Path, seconds: float, rows: dict[str, Any]) -> None:
    write_json(directory / PROGRESS, {"seconds": seconds, "rows": rows})


def _heading(task: Task, directory: Path) -> str:
    parameters = sum(parameter.numel() for parameter in task.make_host().parameters())
    samples, classes = "samples", f"{task.num_classes} classes"
    if task.is_text:
        samples, classes = f"windows of {task.shape[0]} characters", f"{task.num_classes} different ones"
    sizes = f"{len(task.train.y):,} training, {len(task.held_out.y):,} held-out, {len(task.test.y):,} test {samples}"
    return f"{task.name}: {sizes}, {classes}; a host of {parameters:,} parameters\nrun directory {directory}\n"


def _print_closing(result: dict[str, Any], directory: Path) -> None:
    print(f"\n{table(result)}\n\n{worth(result)}\nWritten to {directory}", flush=True)
