"""The process behind :class:`esper.evaluation.worker.Worker`. Run by its path, with the sources of one side to import.

It imports nothing of Esper but the package's own name, since a side may be older than this file. It runs a script,
whose function ``answer`` takes what is asked and gives what is answered: plain values, one JSON object a line.
"""

import json
import os
import runpy
import sys
from typing import Any


def main(script: str) -> None:
    """Answer until the input ends."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the script prints is no answer

    def tell(values: dict[str, Any]) -> None:
        told.write(json.dumps(values) + "\n")
        told.flush()

    try:
        import esper

        tell({"esper": esper.__file__})
        answer = runpy.run_path(script)["answer"]
        for line in sys.stdin:
            tell(answer(json.loads(line)))
    except Exception as error:  # whatever it is, the one who asked is told
        tell({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main(sys.argv[1])
