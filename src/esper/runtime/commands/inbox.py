"""Who may change the run: one thread at a time, which also answers what others ask meanwhile."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from esper.contracts.errors import TransitionError

T = TypeVar("T")

IN_THE_MIDDLE = (
    "The run is in the middle of a step. Ask after it: a listener (on_event, session.subscribe) is called where "
    "nothing is half done, and another thread is answered there."
)


class Inbox:
    """Requests from any thread, answered by whoever holds the run, where nothing of it is half done.

    A thread that asks while another one trains waits for the end of that step, or of the step of an arm; if nobody
    holds the run, it takes its turn itself. There is no lock to be had between the steps of an arm.

    Args:
        deliver: tells listeners what has happened; called before and after requests are answered.
    """

    def __init__(self, deliver: Callable[[], None]) -> None:
        self._deliver = deliver
        self._changed = threading.Condition()
        self._requests: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._holder: int | None = None
        self._is_safe = self._is_over = False  # whether the holder may ask now, and whether it may do anything else

    @property
    def has_requests(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._requests)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around whatever changes the run. At its end listeners are told and requests answered.

        Raises:
            TransitionError: if this thread is in the middle of another turn.
        """
        if self._holder == threading.get_ident():
            if not self._is_over:
                raise TransitionError(IN_THE_MIDDLE)
            self._is_over = self._is_safe = False
            try:
                yield
            finally:
                self._is_over = self._is_safe = True
            return
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._holder is None)
                self._holder = threading.get_ident()
            try:
                yield
            except Exception:  # passed on; an interruption ends the turn at once
                self._end()
                raise
            self._end()
        finally:
            self._release()

    def ask(self, request: Callable[[], T]) -> T:
        """Have something done where nothing is half done.

        Returns:
            What the request returns; what it raises is raised here.

        Raises:
            TransitionError: if this thread is in the middle of a turn.
        """
        if self._holder == threading.get_ident():
            if not self._is_safe:
                raise TransitionError(IN_THE_MIDDLE)
            return self._carried_out(request)
        answer: Future[T] = Future()
        try:
            with self._changed:
                self._requests.append((answer, request))
                self._changed.wait_for(lambda: answer.done() or self._holder is None)
                if not answer.done():
                    self._holder = threading.get_ident()
            if self._holder == threading.get_ident():
                self._end()
        finally:
            answer.cancel()  # does nothing but where an interruption came before it was answered
            self._release()
        return answer.result()

    def safe_point(self) -> None:
        """Within a turn, where nothing is half done: tell listeners, answer requests, tell what came of them."""
        before, self._is_safe = self._is_safe, True
        try:
            self._deliver()
            self._answer()
            self._deliver()
        finally:
            self._is_safe = before

    def _end(self) -> None:
        self._is_over = True
        try:
            self.safe_point()
        finally:
            self._is_over = False

    def _release(self) -> None:
        if self._holder == threading.get_ident():
            with self._changed:
                self._holder = None
                self._changed.notify_all()

    def _carried_out(self, request: Callable[[], T]) -> T:
        """While it is, the run is in the middle of something again."""
        before, self._is_safe, self._is_over = (self._is_safe, self._is_over), False, False
        try:
            return request()
        finally:
            self._is_safe, self._is_over = before

    def _answer(self) -> None:
        while self._requests:
            answer, request = self._requests.popleft()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._carried_out(request))
            except BaseException as error:  # raised where it was asked; an interruption here as well
                answer.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            finally:
                with self._changed:
                    self._changed.notify_all()
