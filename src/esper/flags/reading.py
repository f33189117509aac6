"""Reads a file that may not answer."""

import os
import stat
import threading
from pathlib import Path


class Reader:
    """Reads one file again and again, and never waits for it longer than it may.

    A read that is late goes on in a thread of its own, and no other is begun before it has ended.

    Args:
        path: the file.
        patience_s: seconds to wait for it.
        most_bytes: of it that are read.
    """

    def __init__(self, path: Path, patience_s: float, most_bytes: int) -> None:
        self._path, self._patience_s, self._most_bytes = path, patience_s, most_bytes
        self._thread: threading.Thread | None = None
        self._outcome: bytes | OSError = b""

    def read(self) -> bytes:
        """What stands in the file now.

        Raises:
            OSError: if it cannot be read, is no file, or does not answer (``TimeoutError``).
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name=f"esper reads {self._path.name}", daemon=True)
            self._thread.start()
        self._thread.join(self._patience_s)
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {self._patience_s:g} s")
        self._thread = None
        if isinstance(self._outcome, OSError):
            raise self._outcome
        return self._outcome

    def _read(self) -> None:
        try:
            if not stat.S_ISREG(os.stat(self._path).st_mode):
                raise OSError("it is no regular file")
            with self._path.open("rb") as file:
                self._outcome = file.read(self._most_bytes)
        except OSError as error:
            self._outcome = error
