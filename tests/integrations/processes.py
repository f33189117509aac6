"""Runs in processes of their own: alone or as ranks, to their end or until they are killed."""

import functools
import json
import multiprocessing
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

Run = Callable[[Path], Any]
"""Trains in a folder, from the last checkpoint there if there is one, and tells as plain values what has become of
it."""

PATIENCE = 600
"""Seconds; against hanging."""


@dataclass(frozen=True)
class Moment:
    """A call in the middle of which a process is killed.

    Args:
        owner: of a function.
        name: of the function.
        call: how many times it is called by then.
        rank: of the process.
    """

    owner: Any
    name: str
    call: int = 1
    rank: int = 0

    def await_(self) -> None:
        """Kill this process then."""
        function, calls = getattr(self.owner, self.name), 0

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        setattr(self.owner, self.name, watched)


def lived(run: Run, folder: Path, *moments: Moment, how: str = "fork") -> Any:
    """What a run tells that is alone in its process; None if it was killed.

    Args:
        run: the run.
        folder: its folder.
        moments: at which it may be killed.
        how: ``"fork"``, or ``"spawn"`` for a Python of its own.
    """
    (told,) = lived_by(1, run, folder, *moments, how=how)
    return told


def lived_by(size: int, run: Run, folder: Path, *moments: Moment, how: str = "fork") -> list[Any]:
    """What each rank tells; None of one that was killed, the error's text of one that ended by an error."""
    processes = started(size, run, folder, *moments, how=how)
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL), f"it ended by {process.exitcode}"
    return [told_by(folder, rank) for rank in range(size)]


def started(size: int, run: Run, folder: Path, *moments: Moment, how: str = "fork") -> list[BaseProcess]:
    """The processes of a run."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("told-*"):
        old.unlink()
    context, port = multiprocessing.get_context(how), _free_port()
    processes = [
        context.Process(target=_live, args=(rank, size, port, run, folder, moments))  # type: ignore[attr-defined]
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def _live(rank: int, size: int, port: int, run: Run, folder: Path, moments: tuple[Moment, ...]) -> None:
    """What a process does."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of what trainers use
    if size > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_RUN_ID": "tests"}
    for moment in moments:
        if moment.rank == rank:
            moment.await_()
    try:
        told = {"told": run(folder)}
    except Exception as error:  # the other process is told, who shows it
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"}
    _file(folder, rank).write_text(json.dumps(told))
    os._exit(0)


def told_by(folder: Path, rank: int) -> Any:
    """What a rank has told."""
    path = _file(folder, rank)
    if not path.exists():
        return None
    told = json.loads(path.read_text())
    return told.get("error", told.get("told"))


def _file(folder: Path, rank: int) -> Path:
    return folder / f"told-{rank}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
