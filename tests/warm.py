"""``python`` in a process of its own that need not import torch: that takes longer than most of what is tested so.

Nothing of Esper is there when it begins. Whoever wants to know what an import costs or brings needs a real one.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])


def start(
    arguments: Sequence[str],
    *,
    output: str,
    errors: str | None = None,
    source: str = os.devnull,
    folder: Path | str = ".",
    **environment: str,
) -> BaseProcess:
    """Begin ``python *arguments``.

    Args:
        arguments: ``-c`` and code, ``-m`` and a module, or a script, and what follows.
        output: the file that it writes to.
        errors: another one for its errors.
        source: the file that it reads from.
        folder: where it works.
        environment: all of its variables.
    """
    files = (source, output, errors or output)
    process = _PROCESSES.Process(
        target=_be, args=(list(arguments), files, environment, sys.path, str(Path(folder).absolute()))
    )
    process.start()
    return process


def run(
    arguments: Sequence[str], *, folder: Path | str = ".", environment: Mapping[str, str] = os.environ
) -> "subprocess.CompletedProcess[str]":
    """Run ``python *arguments`` to its end, as ``subprocess.run`` does with ``capture_output`` and ``text``."""
    with TemporaryDirectory() as where:
        told = [Path(where, name) for name in ("output", "errors")]
        process = start(arguments, output=str(told[0]), errors=str(told[1]), folder=folder, **environment)
        process.join()
        output, errors = (path.read_text() for path in told)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(list(arguments), process.exitcode, output, errors)


def _be(
    arguments: list[str], files: tuple[str, str, str], environment: dict[str, str], path: list[str], folder: str
) -> None:
    os.setsid()
    streams = zip(
        ("stdin", "stdout", "stderr"), files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), "rww", strict=True
    )
    for number, (stream, name, flags, how) in enumerate(streams):
        os.dup2(os.open(name, flags | os.O_APPEND), number)
        setattr(sys, stream, os.fdopen(number, how, encoding="utf-8", closefd=False))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    kind, *rest = arguments
    sys.path[:] = path
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")
