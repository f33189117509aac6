"""A process beside us that answers in JSON lines."""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self


class EndedError(Exception):
    """The process has ended where an answer was due: with a code, and a last line of what it told of errors."""

    def __init__(self, code: int, last: str) -> None:
        super().__init__(f"ended with code {code}. {last}".strip())
        self.code, self.last = code, last


class Process:
    """Starts a process, which is killed where the context ends. Nothing runs in it while nothing is asked.

    Args:
        line: that starts it.
        environment: all variables that it has.
        directory: in which it works; None takes ours.
    """

    def __init__(self, line: Sequence[str], environment: Mapping[str, str], directory: Path | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=directory,
            env=environment,
        )

    def exchange(self, question: dict[str, Any] | None) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            EndedError: if the process ends before it has answered.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            EndedError: likewise.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def close(self) -> None:
        """End it, and let go of all that it held."""
        self.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self) -> EndedError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return EndedError(code, lines[-1] if lines else "")
