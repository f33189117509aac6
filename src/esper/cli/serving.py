"""``esper tamiyo serve``."""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from esper.cli.ending import until_told
from esper.cli.health import Health
from esper.contracts.config import GrowthConfig
from esper.oona.codec import TRACEPARENT
from esper.oona.environment import codec
from esper.oona.messages import ObservationReport
from esper.oona.url import open_bus, shown
from esper.tamiyo.policies import make_policy
from esper.tamiyo.serving import Controller

if TYPE_CHECKING:  # needs an extra that a controller without traces does not
    from esper.observability.tracing import Traces

Tell = Callable[[str], None]
Bind = Callable[..., AbstractContextManager[object]]


def serve(
    url: str, policy: str, collector: str | None = None, log_format: str = "text", health: str | None = None
) -> None:
    """Decide for all runs on a bus that ask, until interrupted or terminated.

    Args:
        url: of the bus.
        policy: who decides.
        collector: of traces; None sends none.
        log_format: ``"text"`` or ``"json"``.
        health: ``ADDRESS:PORT`` at which :class:`esper.cli.health.Health` answers; None answers nowhere.

    Raises:
        BusError: if there is no such bus, or its broker does not answer at the start.
        ConfigError: if there is no such policy, no collector can have that URL, a library is not installed, or
            the address of ``health`` is taken.
    """
    make_policy(policy, GrowthConfig())
    with ExitStack() as stack:
        tell, bind = (_print, _bind_nothing) if log_format == "text" else _json(stack)
        traces = None if collector is None else _traces(stack, collector, tell)

        @contextmanager
        def around(question: ObservationReport, headers: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
            """A span, as part of the run's, and its ids in the log."""
            about = {"run_id": question.run_id, "step": question.observation.step}
            if traces is None:
                with bind(**about):
                    yield {}
                return
            with traces.around("decision", headers, run=question.run_id, step=about["step"], policy=policy) as further:
                _, trace_id, span_id, _ = further[TRACEPARENT].split("-")
                with bind(**about, trace_id=trace_id, span_id=span_id):
                    yield further

        bus = open_bus(url)
        stack.callback(bus.close)
        beat = _no_beat if health is None else _health(stack, health, tell)
        ending = stack.enter_context(until_told())
        tell(f"{policy} decides for the runs on {shown(url)}; stop it with Ctrl-C")
        consumer = f"tamiyo-{os.getpid()}-{secrets.token_hex(3)}"
        Controller(bus, codec(os.environ), policy, consumer, tell=tell, around=around, beat=beat).serve(ending)


def _print(text: str) -> None:
    print(text, flush=True)


def _bind_nothing(**fields: object) -> AbstractContextManager[object]:
    return nullcontext()


def _no_beat(hears: bool) -> None:
    """Nobody asks."""


def _health(stack: ExitStack, at: str, tell: Tell) -> Callable[[bool], None]:
    health = Health(at)
    stack.callback(health.close)
    tell(f"whether it is well is told at http://{at.rpartition(':')[0]}:{health.port}/livez and /readyz")
    return health.beat


def _json(stack: ExitStack) -> tuple[Tell, Bind]:
    """One JSON object a line; what is bound stands in those within."""
    from esper.cli.console.machine_log import LibraryLines, json_lines

    log = json_lines()
    from structlog.contextvars import bound_contextvars, get_contextvars

    library = LibraryLines(log)
    logging.getLogger().addHandler(library)
    stack.callback(logging.getLogger().removeHandler, library)
    return lambda text: log.info("decision" if get_contextvars() else "note", text=text), bound_contextvars


def _traces(stack: ExitStack, collector: str, tell: Tell) -> "Traces":
    from esper.observability.tracing import Traces, otlp

    traces = Traces(otlp(collector), "esper-tamiyo", tell)
    stack.callback(traces.close)
    return traces
