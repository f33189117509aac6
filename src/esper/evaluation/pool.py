"""Many jobs in a few processes. A job whose process is killed is given to a new one; no job's failure loses another."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Literal

ATTEMPTS = 3
"""Processes that a job is given, one after the other, where they are killed."""

STOP_S = 60.0
"""For which a process that is told to end may save what it has."""

_CONTEXT = multiprocessing.get_context("spawn")
Tell = Callable[[Any], Any]
"""Tells those who started the pool something of a job; gives their answer."""


@dataclass(frozen=True)
class Heard:
    """What a pool hears of a job.

    Args:
        key: of the job.
        kind: ``told``, with what the job tells; ``done``, with its result; or ``failed``, with a sentence.
        value: see there.
    """

    key: str
    kind: Literal["told", "done", "failed"]
    value: Any


def each(
    work: Callable[[Any, Tell], Any],
    jobs: Mapping[str, Any],
    workers: int,
    answer: Callable[[Heard], Any] = lambda heard: None,
) -> Generator[Heard, None, None]:
    """Do every job in one of a few processes, which live on from job to job.

    Whoever leaves the iterator ends the processes: each is terminated, so that it may save what it has, and killed
    where that takes long. They also end when this process is killed.

    Args:
        work: called with a job and what tells us of it, in another process; both, and what it gives, can be pickled.
        jobs: by key, in the order in which they begin.
        workers: number of processes at most.
        answer: what a job is answered to what it tells.

    Returns:
        What is heard, as it comes; the last of every job is ``done`` or ``failed``.
    """
    waiting, attempts = list(jobs.items()), dict.fromkeys(jobs, 0)
    crew: list[_Worker] = []
    try:
        while waiting or any(one.key is not None for one in crew):
            while waiting and (idle := _idle(crew, work, workers)) is not None:
                key, job = waiting.pop(0)
                attempts[key] += 1
                idle.begin(key, job)
            for one in _ready(crew):
                heard = one.hear(answer)
                if heard is None:  # its process was killed
                    crew.remove(one)
                    assert one.key is not None
                    if attempts[one.key] < ATTEMPTS:
                        waiting.insert(0, (one.key, jobs[one.key]))
                        continue
                    heard = Heard(one.key, "failed", f"its process {one.end} in each of {ATTEMPTS} attempts")
                yield heard
    finally:
        _end(crew)


class _Worker:
    """A process, and the key of the job that it does."""

    def __init__(self, work: Callable[[Any, Tell], Any]) -> None:
        self.key: str | None = None
        self.pipe, theirs = _CONTEXT.Pipe()
        self.process: SpawnProcess = _CONTEXT.Process(target=_serve, args=(work, theirs))
        self.process.start()
        theirs.close()

    def begin(self, key: str, job: Any) -> None:
        self.key = key
        with suppress(BrokenPipeError):  # it was killed, which is heard next
            self.pipe.send(job)

    def hear(self, answer: Callable[[Heard], Any]) -> Heard | None:
        """What it says of its job; None if it has ended."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.pipe.close()
            return None
        assert self.key is not None
        heard = Heard(self.key, kind, value)
        if kind == "told":
            with suppress(BrokenPipeError):
                self.pipe.send(answer(heard))
        else:
            self.key = None
        return heard

    @property
    def end(self) -> str:
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _idle(crew: list[_Worker], work: Callable[[Any, Tell], Any], workers: int) -> _Worker | None:
    """A worker without a job, if need be a new one; None where all have one."""
    for one in crew:
        if one.key is None:
            return one
    if len(crew) >= workers:
        return None
    crew.append(_Worker(work))
    return crew[-1]


def _ready(crew: list[_Worker]) -> list[_Worker]:
    """Those that have something to say, or whose process has ended with a job."""
    busy: dict[Any, _Worker] = {one.pipe: one for one in crew if one.key is not None}
    return [busy[pipe] for pipe in wait(list(busy))]


def _end(crew: list[_Worker]) -> None:
    for one in crew:
        one.process.terminate()
        one.pipe.close()  # it may wait for an answer
    for one in crew:
        one.process.join(STOP_S)
        if one.process.is_alive():
            one.process.kill()
        one.process.join()


def _serve(work: Callable[[Any, Tell], Any], pipe: Connection) -> None:
    """What a process of the pool does: job after job, until it is told to end."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # Ctrl-C is for those who started the pool: they tell us to end, once
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(value: Any) -> Any:
        pipe.send(("told", value))
        return pipe.recv()

    with closing(pipe), suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while True:
            job = pipe.recv()
            try:
                said = ("done", work(job, tell))
            except Exception as error:  # whatever it is, those who wait for the job are told
                said = ("failed", f"{type(error).__name__}: {error}")
                traceback.print_exc()
            pipe.send(said)


def _end_with_parent() -> None:
    """What trains for nobody would write where others go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
