"""``python`` in a process of its own that need not import torch: that takes longer than most of what is tested so.

Nothing of Esper is there when it begins. Whoever wants to know what an import costs or brings needs a real one.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
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


class Started:
    """A process that was begun, which is asked as one of ``subprocess.Popen`` is.

    Args:
        arguments: as of ``start``.
        folder: where it works.
        environment: all of its variables.
        log: the file at whose end all goes that it writes; without one ``communicate`` gives that.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path | str = ".",
        environment: Mapping[str, str] = os.environ,
        log: Path | None = None,
    ):
        self._kept = None if log else TemporaryDirectory()
        self._files = [log] if log else [Path(self._kept.name, name) for name in ("output", "errors")]
        for path in self._files:
            path.touch()  # it may be killed before it opens them
        output, errors = str(self._files[0]), str(self._files[-1])
        self._process = start(arguments, output=output, errors=errors, folder=folder, **environment)
        atexit.register(self.kill)  # else Python waits for what a test that failed has left

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError("It has not ended.")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> tuple[str, str]:
        """What it wrote until its end, and its errors; to be called once."""
        self.wait()
        with self._kept:
            output, errors = (path.read_text() for path in self._files)
        return output, errors


def run(
    arguments: Sequence[str], *, folder: Path | str = ".", environment: Mapping[str, str] = os.environ
) -> "subprocess.CompletedProcess[str]":
    """Run ``python *arguments`` to its end, as ``subprocess.run`` does with ``capture_output`` and ``text``."""
    process = Started(arguments, folder=folder, environment=environment)
    output, errors = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(list(arguments), process.returncode, output, errors)


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
