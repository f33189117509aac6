"""What a writer of checkpoints does to a disk, one operation after the other, so that it can be stopped at each."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from esper.checkpoint import store
from esper.checkpoint.packed import Packed

Tell = Callable[[str, tuple[Path, ...]], None]
"""Hears the name of an operation and its paths, before it is done."""


@contextmanager
def told(before: Tell, after: Tell = lambda kind, paths: None) -> Iterator[None]:
    """Tell of every operation inside. Removing a folder is one for each thing in it."""
    with pytest.MonkeyPatch.context() as patch:

        def watch(kind: str, owner: Any, name: str, paths_of: Callable[..., tuple[Path, ...]]) -> None:
            original = getattr(owner, name)

            def watched(*args: Any, **more: Any) -> Any:
                paths = paths_of(*args)
                before(kind, paths)
                result = original(*args, **more)
                after(kind, paths)
                return result

            patch.setattr(owner, name, watched)

        watch("write", store, "save_file", lambda tensors, path: (path,))
        watch("write", Packed, "copy_to", lambda part, path: (path,))
        watch("write", Path, "write_bytes", lambda path, data: (path,))
        watch("fsync", store, "_flush", lambda path: (path,))
        watch("mkdir", Path, "mkdir", lambda path, *_: (path,))
        watch("rename", Path, "rename", lambda path, target: (path, Path(target)))
        watch("link", Path, "hardlink_to", lambda path, existing: (Path(existing), path))

        def removed(folder: Path, *, ignore_errors: bool) -> None:
            inner = sorted(folder.rglob("*"), reverse=True) if folder.exists() else []
            steps = [("unlink", path, path.unlink) for path in inner]
            steps += [("rmdir", folder, folder.rmdir)] if folder.exists() else []
            for kind, path, remove in steps:
                with suppress(OSError) if ignore_errors else nullcontext():
                    before(kind, (path,))
                    remove()
                    after(kind, (path,))

        patch.setattr(shutil, "rmtree", removed)
        yield


def in_a_child(work: Callable[[], None]) -> int:
    """Do something in a process of its own, and tell how that ended: 0, or the number that it was stopped with."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
