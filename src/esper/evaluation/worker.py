"""A process that lives on beside us and answers questions with the sources of one checkout."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from esper.contracts.errors import EvaluationError

_LOOP = Path(__file__).with_name("worker_loop.py")


class Worker:
    """Runs a script in a process of its own, which imports Esper from a given checkout.

    The script comes from whoever asks and the library from the checkout, so that two workers differ in nothing but the
    library. Nothing runs while nothing is asked. Start several before the first is asked, and they load side by side.

    Args:
        script: a file with a function ``answer(question)``: plain values in, plain values out.
        sources: folder that holds the package ``esper``.
        name: of this side, for messages.
        environment: variables besides those of this process.
    """

    def __init__(self, script: Path, sources: Path, name: str, environment: dict[str, str] | None = None) -> None:
        self._name, self._sources, self._loaded = name, sources.resolve(), False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_LOOP), str(script)],  # -P: the folder of the loop is not to be imported from
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | (environment or {}) | {"PYTHONPATH": str(self._sources)},
            text=True,
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            EvaluationError: if the script raises, the process ends, or it imports Esper from elsewhere.
        """
        if not self._loaded:
            found = Path(self._read()["esper"])
            if not found.is_relative_to(self._sources):
                raise EvaluationError(f"{self._name} should be measured with {self._sources}, but imports {found}.")
            self._loaded = True
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EvaluationError(f"{self._name} cannot do what is measured. {answer['error']}")
        return answer

    def _ended(self) -> EvaluationError:
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return EvaluationError(f"The process of {self._name} ended with code {code}. {' '.join(last)}")
