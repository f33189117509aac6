"""Requests to stop, by Ctrl-C or from the system: the first lets a training step end, so that all can be saved."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupt:
    """While entered, Ctrl-C, termination and a closed terminal all raise :class:`KeyboardInterrupt`.

    In a loop that looks itself, the first request waits for it::

        with esper.Interrupt() as interrupt, interrupt.deferred():
            for batch in loader:
                session.step(batch)
                if session.on_any_rank(interrupt.requested):
                    session.save("runs/a/checkpoints")
                    sys.exit(143)

    Args:
        announce: called from within a signal handler when a stop was asked for that has to wait.

    Attributes:
        requested: whether a stop was asked for that waits.
    """

    def __init__(self, announce: Callable[[], None] = lambda: None) -> None:
        self._announce = announce
        self._waits = False
        self._previous: dict[Any, Any] = {}
        self.requested = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {one: signal.signal(one, self._note) for one in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Around what looks at :attr:`requested` itself. The second request does not wait."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def ignore(self) -> None:
        """The run has stopped: whoever asks again only waits for the last words."""
        for one in self._previous:
            signal.signal(one, signal.SIG_IGN)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested or not self._waits:
            raise KeyboardInterrupt
        self.requested = True
        self._announce()
