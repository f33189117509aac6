"""Esper's own work by name, for profilers: named while it is asked for, and at no cost else.

While :func:`named` is entered, the methods below are wrapped in their classes by a ``record_function``; afterwards they
are what they were. Hooks are bound when a session is built, so that it must be built inside to have all of them named.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

from torch.autograd.profiler import record_function

from esper.kasmina.grafts.arena import Arena
from esper.kasmina.places import slot_optimizer
from esper.kasmina.places.place import Place
from esper.kasmina.places.signals import SignalReader
from esper.kasmina.seeds.telemetry import Telemetry
from esper.runtime.costs.costs import Costs
from esper.runtime.growth import Growth
from esper.runtime.record.journal import Journal
from esper.runtime.run import Run
from esper.runtime.session import Session
from esper.runtime.training.trainer import Trainer
from esper.runtime.trying.steps import Steps

STEP, TRAINING = "esper: step", "training: host, loss, optimizer"

NAMES: dict[str, tuple[Any, str]] = {
    STEP: (Session, "step"),
    TRAINING: (Trainer, "train"),
    "esper: places": (Place, "serve"),
    "esper: seeds look at outputs": (Telemetry, "observe"),
    "esper: seeds look at gradients": (Telemetry, "_tap"),
    "esper: grafts forward": (Arena, "add_to"),
    "esper: grafts step": (slot_optimizer, "step_slots"),
    "esper: signals": (SignalReader, "read"),
    "esper: settings noted": (Trainer, "_note_settings"),
    "esper: FLOPs": (Costs, "step"),
    "esper: batch and modules kept": (Steps, "make"),
    "esper: after the step": (Growth, "after_step"),
    "esper: alphas": (Run, "advance"),
    "esper: arms and boundary": (Session, "_end_step"),
    "esper: told": (Journal, "deliver"),
}
"""Name of each range, and whose work it is. One may lie in another."""


@contextmanager
def named() -> Iterator[None]:
    """Around what is profiled, the building of the session included."""
    before = {name: (owner, key, vars(owner)[key]) for name, (owner, key) in NAMES.items()}
    try:
        for name, (owner, key, work) in before.items():
            setattr(owner, key, _named(name, work))
        yield
    finally:
        for owner, key, work in before.values():
            setattr(owner, key, work)


def _named(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def recorded(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return work(*arguments, **options)

    return recorded


class Span(NamedTuple):
    """One time that a range was entered.

    Args:
        name: of the range.
        thread: in which.
        start_us: microseconds, and
        end_us: of the same clock.
        device_us: of the kernels that it began.
    """

    name: str
    thread: int
    start_us: float
    end_us: float
    device_us: float = 0.0


class Cost(NamedTuple):
    """What a range took, without the ranges within it.

    Args:
        name: of the range.
        calls: how often it was entered.
        own_us: microseconds of the processor.
        device_us: of the device.
    """

    name: str
    calls: int
    own_us: float
    device_us: float


def costs(spans: Iterable[Span]) -> list[Cost]:
    """What each range took by itself, the dearest first. Ranges of one thread lie in each other or apart."""
    found: dict[str, Cost] = {}
    inside: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.thread, one.start_us, -one.end_us)):
        while inside and (inside[-1].thread != span.thread or inside[-1].end_us <= span.start_us):
            inside.pop()
        _book(found, span.name, 1, span.end_us - span.start_us, span.device_us)
        if inside:
            _book(found, inside[-1].name, 0, span.start_us - span.end_us, -span.device_us)
        inside.append(span)
    return sorted(found.values(), key=lambda one: -one.own_us)


def _book(found: dict[str, Cost], name: str, calls: int, own_us: float, device_us: float) -> None:
    before = found.get(name, Cost(name, 0, 0.0, 0.0))
    found[name] = Cost(name, before.calls + calls, before.own_us + own_us, before.device_us + device_us)
