"""``esper run``: grow a network on a task, then tell what that was worth."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esper.blueprints.catalogue import make_blueprint
from esper.cli import run_directory
from esper.cli.conclusion import Conclusion, show_closing
from esper.cli.console.presentation import Heading, Presentation, presentation
from esper.cli.first_weights import first_weights, keep_first_weights
from esper.cli.interrupt import Interrupt
from esper.cli.options import REMOTE, Options
from esper.cli.run_directory import CHECKPOINTS, PROGRESS, RESULT, RUN_ID, note_progress, read_json
from esper.cli.run_flags import keep_flags, run_flags
from esper.contracts.commands import Handled
from esper.contracts.errors import BusError, ConfigError, EsperError
from esper.contracts.flags import Flags
from esper.evaluation.growing import Growing, growing
from esper.kasmina.grafts.strategies import strategy_kind
from esper.observability.spans import trace_id
from esper.observability.tracking.following import Tracking
from esper.observability.tracking.tracker import check_trackers
from esper.runtime.record.outbox import Listener
from esper.tamiyo.heuristic import Policy
from esper.tamiyo.policies import make_policy
from esper.tasks.catalogue import load_task
from esper.tasks.task import Task

if TYPE_CHECKING:  # these need extras that other runs do not
    from esper.observability.tracing import RunTracing
    from esper.runtime.link.link import Link

CHECKPOINT_STEPS = 100


def run(options: Options, directory: Path | None) -> None:
    """Run to the end and write ``result.json`` and ``report.html``.

    A host of the user's own is imported from the current directory or the Python path.

    Args:
        options: what to do.
        directory: of the run to resume; None starts a new one.

    Raises:
        KeyboardInterrupt: if interrupted; the run can be resumed then.
    """
    with presentation(options) as shown, Interrupt(shown.announce_stop) as interrupt:
        if directory is not None and (directory / RESULT).exists():
            shown.say("note", f"the run in {directory} is finished")
            show_closing(directory, shown)
            return
        torch.set_num_threads(options.threads)
        if ":" in options.host and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        task = load_task(
            options.data, options.seed, options.host, label=options.label, task=options.task, layout=options.layout
        )
        if options.metrics_port is not None:
            import esper.observability.metrics.prometheus  # noqa: F401 - refuses where its library is not installed
        flags = run_flags(options, task.name, directory)
        check_trackers(options.trackers)
        run_id = run_directory.run_id(directory, task.name)
        tracing = None if options.traces is None else _tracing(options.traces, run_id, shown)
        link = None
        if options.bus is not None and flags.is_on("message_bus"):
            link = _link(options.bus, run_id, tracing, shown, is_new=directory is None)
        policy = _policy(options, flags, link, shown)
        weights = first_weights(options.weights, task, directory)
        is_new = directory is None
        directory = run_directory.create(options, task.name) if directory is None else directory
        if weights is not None:
            keep_first_weights(weights, directory)
        if is_new:
            keep_flags(flags, directory)
        run_directory.write_text(directory / RUN_ID, run_id + "\n")
        heading = _heading(options, task, directory, run_id, is_traced=tracing is not None)
        listeners: list[Listener] = [one for one in (shown, link, tracing) if one is not None]
        try:
            growth = _prepare(
                options, task, flags, weights, policy, directory, shown, heading, listeners, is_new=is_new
            )
            with _measured(options, growth, run_id, shown):
                tracked = _tracked(options, growth, directory, shown)
                with _traced(tracing, growth, shown), _joined(link, growth, shown), tracked:
                    seconds = _train(growth, directory, interrupt)
                Conclusion(options, task, weights, growth, directory, seconds, shown).conclude()
        except KeyboardInterrupt:
            interrupt.ignore()
            shown.stop()
            again = run_directory.resume_command(directory)
            shown.say("interrupted", f"go on from the last checkpoint with: {again}")
            raise


def _link(url: str, run_id: str, tracing: "RunTracing | None", shown: Presentation, *, is_new: bool) -> "Link":
    """To the bus, under the name of the run.

    Raises:
        BusError: if a new run finds no broker there, the bus will never serve us, or a library is not installed.
    """
    try:
        from esper.oona.url import open_bus
        from esper.runtime.link.link import Link
    except ModuleNotFoundError as error:
        raise BusError(f"--bus needs {error.name}: pip install 'esper-morphogenetic[bus]'.") from error

    def tell(handled: Handled) -> None:
        ids = {} if tracing is None else tracing.handled(handled)
        if not handled.is_decision:  # those come with what they cause
            became = "carried out" if handled.accepted else f"refused: {handled.reason}"
            told = {"command_id": handled.command_id, "who": handled.who, "accepted": handled.accepted}
            shown.say("command", f"{handled.command_id} of {handled.who} was {became}", **told, **ids)

    if is_new:
        open_bus(url).close()
    return Link(url, run_id, headers=None if tracing is None else tracing.headers, on_handled=tell)


def _tracing(url: str, run_id: str, shown: Presentation) -> "RunTracing":
    """To a collector of traces.

    Raises:
        ConfigError: if that is no URL, or a library is not installed.
    """
    from esper.observability.tracing import RunTracing, Traces, otlp

    return RunTracing(Traces(otlp(url), "esper-run", lambda text: shown.say("note", text)), run_id)


@contextmanager
def _traced(tracing: "RunTracing | None", growth: Growing, shown: Presentation) -> Iterator[None]:
    """Around the training: it is told as a trace."""
    if tracing is None:
        yield
        return
    tracing.follow(growth.session.events)
    error: str | None = None
    try:
        yield
    except Exception as failure:  # passed on
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        tracing.close(error)


@contextmanager
def _joined(link: "Link | None", growth: Growing, shown: Presentation) -> Iterator[None]:
    """Around the training: commands are heard, and at its end what waits goes out."""
    if link is None:
        yield
        return
    link.follow(growth.session, lambda text: shown.say("note", text))
    try:
        yield
    finally:
        if not link.close():
            shown.say("note", "the bus did not take all that happened")


@contextmanager
def _measured(options: Options, growth: Growing, run_id: str, shown: Presentation) -> Iterator[None]:
    """Metrics are served meanwhile, if they are asked for and the port is to be had."""
    if options.metrics_port is None:
        yield
        return
    from esper.observability.metrics.prometheus import Metrics

    try:
        metrics = Metrics(options.metrics_port, options.metrics_host, run_id)
    except ConfigError as error:
        shown.say("note", f"the run goes on without metrics: {error}")
        yield
        return
    metrics.begin_with(growth.session.events)
    growth.session.subscribe(metrics)
    shown.say("metrics", f"at http://{options.metrics_host}:{metrics.port}/metrics")
    try:
        yield
    finally:
        metrics.close()


@contextmanager
def _tracked(options: Options, growth: Growing, directory: Path, shown: Presentation) -> Iterator[None]:
    """Around the training: trackers are told of it."""
    tracking = [Tracking(name, directory, tell=lambda text: shown.say("note", text)) for name in options.trackers]
    for one in tracking:
        one.follow(growth.session)
    try:
        yield
    finally:
        for one in tracking:
            one.close()


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


def _train(growth: Growing, directory: Path, interrupt: Interrupt) -> float:
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
        samples, kinds = f"windows of {task.shape[0]} characters", "different characters"
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
