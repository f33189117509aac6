"""The first Ctrl-C asks for a stop at the end of the step, where everything can be saved; the second stops at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self


class Interrupt:
    """While entered, Ctrl-C only raises :attr:`requested`, once.

    Args:
        announce: called when it is requested, from within a signal handler.
    """

    def __init__(self, announce: Callable[[], None]) -> None:
        self._announce = announce
        self.requested = False

    def __enter__(self) -> Self:
        self._is_ours = threading.current_thread() is threading.main_thread()
        if self._is_ours:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, self._previous)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._announce()
