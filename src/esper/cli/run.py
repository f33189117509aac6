"""``esper run``: grow a network on a task, then tell what that was worth."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from esper.blueprints.catalogue import make_blueprint
from esper.cli import run_directory
from esper.cli.asked_task import asked_task
from esper.cli.audience import Audience
from esper.cli.conclusion import Conclusion, show_closing
from esper.cli.console.presentation import Heading, Presentation, presentation
from esper.cli.first_weights import first_weights, keep_first_weights
from esper.cli.options import REMOTE, Options
from esper.cli.run_directory import CHECKPOINTS, PROGRESS, RESULT, RUN_ID, note_progress, read_json
from esper.cli.run_flags import keep_flags, run_flags
from esper.contracts.errors import ConfigError, EsperError
from esper.contracts.flags import Flags
from esper.evaluation.growing import Growing, growing
from esper.kasmina.grafts.strategies import strategy_kind
from esper.observability.spans import trace_id
from esper.runtime.interrupt import Interrupt
from esper.runtime.record.outbox import Listener
from esper.runtime.session import Session
from esper.tamiyo.heuristic import Policy
from esper.tamiyo.policies import make_policy
from esper.tasks.host_settings import written
from esper.tasks.placed import device_name, device_named
from esper.tasks.task import Task

if TYPE_CHECKING:  # these need extras that other runs do not
    from esper.runtime.link.link import Link

CHECKPOINT_STEPS = 100


def run(
    options: Options, directory: Path | None, after_epoch: Callable[[Session], None] = lambda session: None
) -> None:
    """Run to the end and write ``result.json`` and ``report.html``.

    A host of the user's own is imported from the current directory or the Python path.

    Args:
        options: what to do.
        directory: of the run to resume; None starts a new one.
        after_epoch: called after every epoch; what it raises ends the run there.

    Raises:
        KeyboardInterrupt: if interrupted; the run can be resumed then.
    """
    with presentation(options) as shown, Interrupt(shown.announce_stop) as interrupt:
        if directory is not None and (directory / RESULT).exists():
            shown.say("note", f"the run in {directory} is finished")
            show_closing(directory, shown)
            return
        options = _on_its_device(options, directory)
        task = asked_task(options)
        is_new = directory is None
        flags = run_flags(options, task.name, directory)
        run_id = run_directory.run_id(directory, task.name)
        audience = Audience(options, flags, run_id, shown, is_new=is_new)
        policy = _policy(options, flags, audience.link, shown)
        weights = first_weights(options.weights, task, directory)
        directory = run_directory.create(options, task.name) if directory is None else directory
        if weights is not None:
            keep_first_weights(weights, directory)
        if is_new:
            keep_flags(flags, directory)
        run_directory.write_text(directory / RUN_ID, run_id + "\n")
        heading = _heading(options, task, directory, run_id, is_traced=audience.tracing is not None)
        listeners: list[Listener] = [shown, *audience.listeners]
        try:
            growth = _prepare(
                options, task, flags, weights, policy, directory, shown, heading, listeners, is_new=is_new
            )
            with audience.measuring(growth.session):
                with audience.hearing(growth.session, directory):
                    seconds = _train(growth, directory, interrupt, after_epoch)
                Conclusion(options, task, weights, growth, directory, seconds, shown).conclude()
        except KeyboardInterrupt:
            interrupt.ignore()
            shown.stop()
            again = run_directory.resume_command(directory)
            shown.say("interrupted", f"go on from the last checkpoint with: {again}")
            raise


def _on_its_device(options: Options, directory: Path | None) -> Options:
    """Options that name the device which ``auto`` means here; refuses one that is not there."""
    try:
        return replace(options, device=device_named(options.device))
    except ConfigError as error:
        if directory is None:
            raise
        raise ConfigError(
            f"--resume: the run in {directory} was started on {options.device} and goes on exactly only there, but "
            "torch finds no such device here. Resume it where there is one, or start another run."
        ) from error


def _policy(options: Options, flags: Flags, link: "Link | None", shown: Presentation) -> Policy:
    """The controller; refuses names that are not known before anything is written."""
    for blueprint in options.growth.blueprints:
        make_blueprint(blueprint, {})
    if options.growth.strategy is not None:
        strategy_kind(options.growth.strategy)
    if options.policy != REMOTE:
        return make_policy(options.policy, options.growth)
    if options.bus is not None and not flags.is_on("message_bus"):
        return make_policy("never" if options.stand_in == "none" else options.stand_in, options.growth)
    if link is None:
        raise ConfigError("The policy remote is asked over a bus. Name it by --bus URL.")
    otherwise = None if options.stand_in == "none" else make_policy(options.stand_in, options.growth)
    return link.policy(options.growth, options.decision_timeout, otherwise, lambda text: shown.say("note", text))


def _prepare(
    options: Options,
    task: Task,
    flags: Flags,
    weights: dict[str, Tensor] | None,
    policy: Policy,
    directory: Path,
    shown: Presentation,
    heading: Heading,
    listeners: list[Listener],
    *,
    is_new: bool,
) -> Growing:
    """A run at its start, or where its checkpoint stands."""
    shown.begin(heading)
    for told in task.told:
        shown.say("data", told)
    if options.host_settings:
        shown.say("host", written(options.host_settings))
    if (options.device, options.precision, options.compile) != ("cpu", "fp32", False):
        how = ", compiled" if options.compile else ""
        shown.say("device", f"{device_name(task.device)}, in {options.precision}{how}")
    for name, flag in flags.values.items():
        if not flag.is_on:
            shown.say("flag", f"{name} is off: {flag.reason}")
    if weights is not None:
        shown.say("note", f"the host begins with the weights of {options.weights}")
    try:
        growth = growing(
            task,
            options.growth,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            schedule=options.schedule,
            seed=options.seed,
            steps_per_epoch=options.steps_per_epoch,
            weights=weights,
            policy=policy,
            directory=directory,
            checkpoint_steps=CHECKPOINT_STEPS,
            flags=flags,
            on_event=listeners,
        )
    except EsperError:
        if is_new:
            run_directory.discard(directory)
        raise
    shown.follow(growth.session)
    if run_directory.has_checkpoint(directory):
        growth.session.load(directory / CHECKPOINTS)
        shown.say("resumed", f"after {growth.session.step_count} steps")
        shown.follow(growth.session)  # anew, with what happened before
    return growth


def _train(growth: Growing, directory: Path, interrupt: Interrupt, after_epoch: Callable[[Session], None]) -> float:
    """Train to the end; gives the seconds that it took, interruptions left out."""
    session = growth.session
    spent = float(read_json(directory / PROGRESS).get("seconds", 0.0))
    if any(event["event"] == "finished" for event in session.events):
        return spent
    started = time.perf_counter() - spent
    with interrupt.deferred():
        for _ in range(session.epoch, growth.epochs):
            for batch in growth.loader:
                session.step(batch)
                if interrupt.requested:
                    session.save(directory / CHECKPOINTS)
                    note_progress(directory, time.perf_counter() - started, {})
                    raise KeyboardInterrupt
            session.after_epoch()
            note_progress(directory, time.perf_counter() - started, {})
            after_epoch(session)
        session.finish()
        seconds = time.perf_counter() - started
        note_progress(directory, seconds, {})
        if interrupt.requested:
            raise KeyboardInterrupt
    return seconds


def _heading(options: Options, task: Task, directory: Path, run_id: str, *, is_traced: bool) -> Heading:
    samples, kinds = "samples", "labels" if task.kind == "multilabel" else "classes"
    if task.kind == "regression":
        kinds = "quantity"
    if task.is_text:
        kinds = "byte values" if task.tokens == "bytes" else "different characters"
        samples = f"windows of {task.shape[0]} {task.tokens}"
    return Heading(
        task=task.name,
        host=options.host,
        directory=str(directory),
        seed=options.seed,
        epochs=options.epochs,
        training=len(task.train.y),
        held_out=len(task.held_out.y),
        test=len(task.test.y),
        samples=samples,
        classes=task.num_classes,
        kinds=kinds,
        parameters=sum(parameter.numel() for parameter in task.make_host().parameters()),
        run_id=run_id,
        trace_id=trace_id(run_id) if is_traced else None,
    )
