"""Runs one unit of ``module:function`` in a process of its own.

It imports nothing of Esper, which may itself be what is measured.

It reads one JSON object, ``{"function", "seed", "outputs"}``, and answers in JSON lines: ``metrics``, ``timed``, or
``failed`` or ``wrong`` with a sentence; once timed, every further line that it reads asks for one lap. With ``"same"``
instead of ``"seed"`` it tells whether the two names stand for the same function, and from which source each comes.
"""

import gc
import hashlib
import importlib
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LAP_S = 2e-3
"""Calls of a lap go on for at least so long: a clock, and a switch of tasks, then weigh little."""
WARM_UP_S, WARM_UP_CALLS = 0.1, 5


class WrongError(Exception):
    """What was named cannot be used."""


def main() -> None:
    """Answer on what was the standard output; what the function prints goes to the standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=channel, flush=True)

    try:
        serve(json.loads(sys.stdin.readline()), tell)
    except WrongError as error:
        tell(wrong=str(error))
    except Exception as error:  # the user's code: it may raise anything
        tell(failed=told(error))


def serve(asked: dict[str, Any], tell: Callable[..., None]) -> None:
    """Answer what is asked."""
    function = load(asked["function"])
    if "same" in asked:
        other = load(asked["same"])
        tell(same=function is other, sources=[source(function), source(other)])
        return
    made = function(asked["seed"])
    if not callable(made):
        tell(metrics={str(name): number(value) for name, value in dict(made).items()})
        return
    output = made()
    has_outputs = save(output, asked["outputs"])
    del output
    calls = calls_of(made)
    tell(timed=True, has_outputs=has_outputs)
    gc.collect()
    gc.disable()
    for _ in sys.stdin:
        tell(seconds=lap(made, calls))


def load(name: str) -> Callable[..., Any]:
    """The function of ``module:function``."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise WrongError(f"{name}: importing {module_name} failed: {told(error)}.") from error
        raise WrongError(
            f"{name}: there is no module {error.name!r}, neither in the current directory nor on the Python path."
        ) from error
    except Exception as error:  # the user's code: it may raise anything
        raise WrongError(f"{name}: importing {module_name} failed: {told(error)}.") from error
    function: Any = getattr(module, attribute, None)
    if not callable(function):
        there = ", ".join(sorted(one for one, value in vars(module).items() if callable(value) and one[0] != "_"))
        raise WrongError(f"{name}: {module_name} has no function {attribute!r}. Valid: {there}.")
    return function


def calls_of(made: Callable[[], Any]) -> int:
    """Warm up; gives how many calls a lap takes."""
    begun, calls = time.perf_counter(), 0
    while calls < WARM_UP_CALLS or time.perf_counter() - begun < WARM_UP_S:
        made()
        calls += 1
    fastest = min(lap(made, 1) for _ in range(3))
    return max(1, math.ceil(LAP_S / max(fastest, 1e-9)))


def lap(made: Callable[[], Any], calls: int) -> float:
    """Seconds a call."""
    synchronize()
    begun = time.perf_counter()
    for _ in range(calls):
        made()
    synchronize()
    return (time.perf_counter() - begun) / calls


def synchronize() -> None:
    """Wait until the GPU has done what it was asked, where one is used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def save(output: Any, path: str) -> bool:
    """Write the arrays of an output; gives whether there are any."""
    arrays = list(arrays_of(output))
    if arrays:
        import numpy

        numpy.savez(path, *arrays)
    return bool(arrays)


def arrays_of(output: Any) -> Iterator[Any]:
    """Tensors and arrays of a nest of tuples, lists and mappings, in their order."""
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        for one in output:
            yield from arrays_of(one)
    elif hasattr(output, "detach"):
        tensor = output.detach().cpu()
        yield (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    elif hasattr(output, "__array__"):
        yield output


def source(function: Callable[..., Any]) -> str:
    """A digest of the file in which a function stands; of its name where it stands in none."""
    try:
        with open(inspect.getfile(inspect.unwrap(function)), "rb") as file:
            content = file.read()
    except (TypeError, OSError):
        content = repr(function).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def number(value: Any) -> float | str:
    """A metric as JSON can tell it: the parent refuses what is no finite number."""
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (int, float)) and math.isfinite(value) else repr(value)


def told(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": .")


if __name__ == "__main__":
    main()
