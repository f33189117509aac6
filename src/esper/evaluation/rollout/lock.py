"""One process at a time: a file that names who holds it, and that the system lets go of when that process dies."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.contracts.errors import ConfigError

_LOOK_S = 0.05


@contextmanager
def held(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: of the file.
        wait_s: for which to wait for another that holds it.

    Raises:
        ConfigError: if another holds it, on this host or another one; the sentence says who.
    """
    import fcntl  # not on Windows, where only this cannot work

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ConfigError(_refusal(path, _holder(descriptor))) from None
                time.sleep(_LOOK_S)
        # Where disks are shared, a lock may hold on its own host only: a name that was left is the only trace.
        if (holder := _holder(descriptor)) and holder.get("host") != socket.gethostname():
            raise ConfigError(f"{_refusal(path, holder)} If that process is gone, delete {path}.")
        told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        _put(descriptor, json.dumps(told).encode())
        try:
            yield
        finally:
            _put(descriptor, b"")
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> dict[str, str]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:  # it is just being written
        return {}
    return found if isinstance(found, dict) else {}


def _put(descriptor: int, content: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _refusal(path: Path, holder: dict[str, str]) -> str:
    who = "Process {} on {}, since {},".format(*(holder.get(name, "unknown") for name in ("pid", "host", "since")))
    return f"{who} is at work on the rollout in {path.parent}. Wait for it, or end it; nothing was changed."
