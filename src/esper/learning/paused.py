"""A function that asks by calling, turned inside out: a generator that yields what is asked and is sent the answers."""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def paused(work: Callable[[Callable[[Asked], Answer]], Result]) -> Generator[Asked, Answer, Result]:
    """Run a function until it asks; send the answer, and it runs until it asks again.

    It runs in a thread of its own, but never at the same time as its caller, and with a random state of torch's that is
    its own: neither moves what the other draws. Closing the generator ends the function where it asks.

    Args:
        work: called with ``ask``, which is called with a question and returns its answer.

    Returns:
        What it asks, and at the end its result. What it raises is raised here.
    """
    asked: SimpleQueue[tuple[Asked] | None] = SimpleQueue()
    answers: SimpleQueue[tuple[Answer] | None] = SimpleQueue()
    result: Future[Result] = Future()

    def ask(question: Asked) -> Answer:
        asked.put((question,))
        answer = answers.get()
        if answer is None:
            raise _Closed
        return answer[0]

    def run() -> None:
        try:
            result.set_result(work(ask))
        except BaseException as error:  # whatever it is, the caller gets it
            result.set_exception(error)
        asked.put(None)

    thread = Thread(target=run, name="paused", daemon=True)  # what nobody has closed must not keep Python from ending
    turn = _Turn(asked)
    question = turn.take(thread.start)
    try:
        while question is not None:
            question = turn.take(answers.put, ((yield question[0]),))
        return result.result()
    finally:
        answers.put(None)
        thread.join()


class _Closed(BaseException):
    """Ends the function; nothing that it catches is this."""


class _Turn:
    """Lets the other side run until it has said something, with its own random state."""

    def __init__(self, said: SimpleQueue[Any]) -> None:
        self._said, self._state = said, torch.get_rng_state()

    def take(self, begin: Callable[..., None], *given: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._state)
            begin(*given)
            said = self._said.get()
            self._state = torch.get_rng_state()
        return said
