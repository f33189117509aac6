"""A process that lives on beside us and answers questions with the sources of one checkout."""

import os
import sys
from pathlib import Path
from typing import Any

from esper.contracts.errors import EvaluationError
from esper.evaluation.process import EndedError, Process

_LOOP = Path(__file__).with_name("worker_loop.py")


class Worker(Process):
    """Runs a script in a process of its own, which imports Esper from a given checkout.

    The script comes from whoever asks and the library from the checkout, so that two workers differ in nothing but the
    library. Start several before the first is asked, and they load side by side.

    Args:
        script: a file with a function ``answer(question)``: plain values in, plain values out.
        sources: folder that holds the package ``esper``.
        name: of this side, for messages.
    """

    def __init__(self, script: Path, sources: Path, name: str) -> None:
        self._name, self._sources, self._loaded = name, sources.resolve(), False
        line = [sys.executable, "-P", str(_LOOP), str(script)]  # -P: the folder of the loop is not to be imported from
        super().__init__(line, os.environ | {"PYTHONPATH": str(self._sources)})

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            EvaluationError: if the script raises, the process ends, or it imports Esper from elsewhere.
        """
        try:
            if not self._loaded:
                found = Path(self._checked(self.read())["esper"])
                if not found.is_relative_to(self._sources):
                    raise EvaluationError(f"{self._name} should be measured with {self._sources}, but imports {found}.")
                self._loaded = True
            return self._checked(self.exchange(question))
        except EndedError as error:
            raise EvaluationError(f"The process of {self._name} {error}") from None

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise EvaluationError(f"{self._name} cannot do what is measured. {answer['error']}")
        return answer
