"""Who hears of a run besides its directory and the console: a bus, a collector of traces, Prometheus, trackers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from esper.cli.console.presentation import Presentation
from esper.cli.options import Options
from esper.contracts.commands import Handled
from esper.contracts.errors import BusError, ConfigError
from esper.contracts.flags import Flags
from esper.observability.tracking.following import Tracking
from esper.observability.tracking.tracker import check_trackers
from esper.runtime.record.outbox import Listener
from esper.runtime.session import Session

if TYPE_CHECKING:  # these need extras that other runs do not
    from esper.observability.tracing import RunTracing
    from esper.runtime.link.link import Link


class Audience:
    """All that were asked to hear. Build it before anything of the run is written: who cannot hear is told then.

    Args:
        options: of the run.
        flags: of its model.
        run_id: of the run.
        shown: where trouble is told.
        is_new: whether the run begins now; one that goes on also goes on without its broker.

    Attributes:
        link: to the bus; None without one.
        tracing: to the collector of traces; None without one.

    Raises:
        BusError: if a new run finds no broker, the bus will never serve us, or a library is not installed.
        ConfigError: if a name or URL is none, or a library is not installed.
    """

    def __init__(self, options: Options, flags: Flags, run_id: str, shown: Presentation, *, is_new: bool) -> None:
        self._options, self._run_id, self._shown = options, run_id, shown
        if options.metrics_port is not None:
            import esper.observability.metrics.prometheus  # noqa: F401 - refuses where its library is not installed
        check_trackers(options.trackers)
        self.tracing = None if options.traces is None else self._traces(options.traces)
        self.link: Link | None = None
        if options.bus is not None and flags.is_on("message_bus"):
            self.link = self._joined(options.bus, is_new=is_new)

    @property
    def listeners(self) -> list[Listener]:
        """For ``Session(on_event=...)``: those that hear from the first line on."""
        return [one for one in (self.link, self.tracing) if one is not None]

    @contextmanager
    def hearing(self, session: Session, directory: Path) -> Iterator[None]:
        """Around the training: traces, bus and trackers know the session, and at its end what waits goes out."""
        with ExitStack() as ending:
            if self.tracing is not None:
                ending.enter_context(_ended(self.tracing, session))
            if self.link is not None:
                self.link.follow(session, self._note)
                ending.push(self._leave)
            for name in self._options.trackers:
                tracking = Tracking(name, directory, tell=self._note)
                tracking.follow(session)
                ending.callback(tracking.close)
            yield

    @contextmanager
    def measuring(self, session: Session) -> Iterator[None]:
        """Metrics are served meanwhile, if they are asked for and the port is to be had."""
        options = self._options
        if options.metrics_port is None:
            yield
            return
        from esper.observability.metrics.prometheus import Metrics

        try:
            metrics = Metrics(options.metrics_port, options.metrics_host, self._run_id)
        except ConfigError as error:
            self._note(f"the run goes on without metrics: {error}")
            yield
            return
        metrics.begin_with(session.events)
        session.subscribe(metrics)
        self._shown.say("metrics", f"at http://{options.metrics_host}:{metrics.port}/metrics")
        try:
            yield
        finally:
            metrics.close()

    def _note(self, text: str) -> None:
        self._shown.say("note", text)

    def _traces(self, url: str) -> "RunTracing":
        from esper.observability.tracing import RunTracing, Traces, otlp

        return RunTracing(Traces(otlp(url), "esper-run", self._note), self._run_id)

    def _joined(self, url: str, *, is_new: bool) -> "Link":
        try:
            from esper.oona.url import open_bus
            from esper.runtime.link.link import Link
        except ModuleNotFoundError as error:
            raise BusError(f"--bus needs {error.name}: pip install 'esper-morphogenetic[bus]'.") from error
        if is_new:
            open_bus(url).close()
        headers = None if self.tracing is None else self.tracing.headers
        return Link(url, self._run_id, headers=headers, on_handled=self._handled)

    def _handled(self, handled: Handled) -> None:
        ids = {} if self.tracing is None else self.tracing.handled(handled)
        if not handled.is_decision:  # those come with what they cause
            became = "carried out" if handled.accepted else f"refused: {handled.reason}"
            told = {"command_id": handled.command_id, "who": handled.who, "accepted": handled.accepted}
            self._shown.say("command", f"{handled.command_id} of {handled.who} was {became}", **told, **ids)

    def _leave(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self.link is not None
        if not self.link.close(is_stopped=kind is KeyboardInterrupt):
            self._note("the bus did not take all that happened")


@contextmanager
def _ended(tracing: "RunTracing", session: Session) -> Iterator[None]:
    """A trace that ends with what is raised."""
    tracing.follow(session.events)
    error: str | None = None
    try:
        yield
    except Exception as failure:  # passed on
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        tracing.close(error)
