"""One process at a time: a file that names who holds it, and that the system lets go of when that process dies."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.contracts.errors import ConfigError

_LOOK_S = 0.02


@contextmanager
def held(path: Path, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock.

    Args:
        path: of the file, which is gone afterwards.
        what: it is for, as an error names it.
        wait_s: for which to wait for another that holds it.

    Raises:
        ConfigError: if another holds it, on this host or another one; the sentence says who.
        OSError: if the file cannot be made.
    """
    descriptor = _taken(path, what, wait_s)
    try:
        told = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that it is nobody else's
        os.close(descriptor)


def _taken(path: Path, what: str, wait_s: float) -> int:
    import fcntl  # only where it is needed: Windows has none

    deadline = time.monotonic() + wait_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise ConfigError(_refusal(what, holder)) from None
            time.sleep(_LOOK_S)
            continue
        if not _is_at(path, descriptor):  # whoever held it has deleted it in the meantime
            os.close(descriptor)
            continue
        # Where disks are shared, a lock may hold on its own host only: a name that was left is the only trace.
        holder = _holder(descriptor)
        if holder.get("host", socket.gethostname()) != socket.gethostname():
            os.close(descriptor)
            raise ConfigError(f"{_refusal(what, holder)} If that process is gone, delete {path}.")
        return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> dict[str, str]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
    except ValueError:  # it is just being written
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(what: str, holder: dict[str, str]) -> str:
    who = "process {} on {}, since {}".format(*(holder.get(name, "unknown") for name in ("pid", "host", "since")))
    return f"Another writer holds {what}: {who}. Wait for it, or end it; nothing was changed."
