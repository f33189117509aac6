"""An implementation: ``module:function``, measured in a process of its own for every unit.

The function takes a seed. What it returns decides: a mapping holds metrics; a callable without arguments is timed, and
what it returns is held against what the other side returns.

A process is new for every unit, and its start is not timed. Two processes of the same code differ in speed for as long
as they live (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013): were there one for each side,
the luck of both would be a difference that no number of laps averages out.
"""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esper.contracts.errors import ConfigError
from esper.evaluation.ab.subject import Outputs, Unit, UnitFailedError, checked
from esper.evaluation.process import EndedError, Process

_WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Place:
    """Where code is run.

    Args:
        directory: the working directory.
        paths: searched for modules before all others.
        timeout_s: after which a unit has failed.
    """

    directory: Path
    paths: tuple[Path, ...]
    timeout_s: float

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process there."""
        known = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, self.paths), *known])}


@dataclass(frozen=True)
class Implementation:
    """A :class:`~esper.evaluation.ab.subject.Subject` that runs ``module:function`` in a place.

    Args:
        name: for people.
        function: ``module:function``.
        place: where.
        identity: see there.
    """

    name: str
    function: str
    place: Place
    identity: str

    @contextmanager
    def measure(self, seed: int) -> Iterator[Unit]:
        """A unit, in a new process that ends with it."""
        with tempfile.TemporaryDirectory() as folder, _worker(self.place) as process:
            outputs = Path(folder) / "outputs.npz"
            found = _asked(process, self.place, {"function": self.function, "seed": seed, "outputs": str(outputs)})
            if "metrics" in found:
                yield Unit(checked(found["metrics"]))
                return

            def read() -> Outputs | None:
                if not found["has_outputs"]:
                    return None
                with np.load(outputs, allow_pickle=False) as stored:
                    return Outputs(f"seed {seed}", [stored[name] for name in stored.files])

            yield Unit({}, lap=lambda: float(_asked(process, self.place, None)["seconds"]), outputs=read)


def implementations(names: Sequence[str], place: Place) -> tuple[Implementation, Implementation]:
    """Two implementations in one place.

    Raises:
        ConfigError: if one cannot be imported.
    """
    a, b = names
    with _worker(place) as process:
        found = _asked(process, place, {"function": a, "same": b})
    identities = [f"{name} {source}" for name, source in zip(names, found["sources"], strict=True)]
    if found["same"]:
        identities[1] = identities[0]
    return Implementation(a, a, place, identities[0]), Implementation(b, b, place, identities[1])


def _worker(place: Place) -> Process:
    return Process([sys.executable, "-P", str(_WORKER)], place.environment, place.directory)


def _asked(process: Process, place: Place, question: dict[str, Any] | None) -> dict[str, Any]:
    """The answer to a question.

    Raises:
        UnitFailedError: if the function raised, the process died, or it took too long.
        ConfigError: if the function is none.
    """
    late = threading.Timer(place.timeout_s, process.kill)
    late.start()
    try:
        answer = process.exchange(question)
    except EndedError as error:
        if not late.is_alive():
            raise UnitFailedError(f"it took more than {place.timeout_s:g} s") from None
        raise UnitFailedError(f"its process ended with {error.code}" + (error.last and f": {error.last}")) from None
    finally:
        late.cancel()
    if "wrong" in answer:
        raise ConfigError(answer["wrong"])
    if "failed" in answer:
        raise UnitFailedError(answer["failed"])
    return answer
