"""A disk that takes no more bytes, for as long as a test wants."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


class FullDisk:
    """No file of this process can grow beyond a size while it is full; writing fails as on a full disk."""

    def fill(self, longest_file: int = 0) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest_file, resource.RLIM_INFINITY))

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def full_disk() -> Iterator[FullDisk]:
    disk = FullDisk()
    try:
        yield disk
    finally:
        disk.empty()
