"""The last store that could be read, kept beside it with its checksum."""

import hashlib
from pathlib import Path

from esper.flags.document import MOST_BYTES
from esper.flags.reading import Reader
from esper.whole_file import write_whole


def path_of(store: Path) -> Path:
    """Where the copy of a store lies."""
    return store.with_name(store.name + ".good")


def keep(store: Path, data: bytes) -> None:
    """Write the copy, as a whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(path_of(store), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def reader(store: Path, patience_s: float) -> Reader:
    """What reads the copy of a store, and waits for it no longer than that."""
    return Reader(path_of(store), patience_s, MOST_BYTES + 65)  # the checksum and its line's end come before the store


def read(copy: Reader) -> bytes | None:
    """What was kept; None if there is none, it is damaged, or does not answer."""
    try:
        digest, _, data = copy.read().partition(b"\n")
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest().encode() == digest else None
