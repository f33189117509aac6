"""Models compiled by torch: whether a run calls any, and that torch has given one up."""

import functools
import itertools
import logging
import re
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from esper.contracts.events import Note
from esper.runtime.record.journal import Journal

DEPTH = 3
"""How far functions are followed: what they close over, what that closes over."""

MOST = 100
"""Members of a container that are looked at: a data set may be among what a function closes over."""

STRUCTURES = 16
"""Compilations that growth may cost, in training and without gradients, beyond those that torch allows for."""

LOGGER = "torch._dynamo.convert_frame"
"""Where torch says that it compiles a function no more."""

_GIVEN_UP = re.compile(r"hit config\.(\w*limit) \((\d+)\)\s+function: '(.+?)' \((.+?)\)\s")


def calls_compiled(model: nn.Module, *functions: object) -> bool:
    """Whether a model, or what functions close over or name, was compiled by torch.

    What they fetch from elsewhere when they run is not found.
    """
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    forwards = (vars(kind).get("forward") for kind in kinds)
    attributes = (value for module in model.modules() for value in (module, *vars(module).values()))
    return any(map(_is_compiled, (*forwards, *attributes))) or any(_reaches(one, DEPTH) for one in functions)


def allow_structures() -> None:
    """Let torch compile a model for what grows in it: by default it gives a function up after eight times."""
    from torch._dynamo import config  # takes a second

    config.recompile_limit = max(config.recompile_limit, 8 + STRUCTURES)


def _is_compiled(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return "_orig_mod" in value._modules or value._compiled_call_impl is not None
    found = getattr(value, "__dict__", None) if callable(value) else None
    return isinstance(found, Mapping) and "_torchdynamo_orig_callable" in found and "_torchdynamo_disable" not in found


def _reaches(value: Any, depth: int) -> bool:
    if _is_compiled(value):
        return True
    if isinstance(value, nn.Module):
        return any(map(_is_compiled, value.modules()))
    return depth > 0 and any(_reaches(one, depth - 1) for one in _within(value))


def _within(value: Any) -> Iterator[Any]:
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        names = [name for name in value.__code__.co_names if name in value.__globals__]
        yield from (value.__globals__[name] for name in names)
        yield from _contents(value.__closure__ or ())
        yield from (value.__defaults__ or ())
    elif isinstance(value, Mapping):
        yield from itertools.islice(value.values(), MOST)
    elif isinstance(value, list | tuple):
        yield from value[:MOST]
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type | types.ModuleType):
        yield from vars(value).values()


def _contents(cells: Iterable[types.CellType]) -> Iterator[Any]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


class GivenUp(logging.Handler):
    """Writes a note when torch compiles a function no more, and runs it eagerly from there on; once by its name.

    Args:
        journal: where it is told.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = weakref.ref(journal)
        self._told: set[str] = set()
        logging.getLogger(LOGGER).addHandler(self)
        self._finalizer = weakref.finalize(journal, logging.getLogger(LOGGER).removeHandler, self)

    def detach(self) -> None:
        """Listen no more."""
        self._finalizer()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``."""
        found, journal = _GIVEN_UP.search(record.getMessage()), self._journal()
        if found is None or journal is None:
            return
        setting, limit, name, where = found.groups()
        if f"{name} {where}" not in self._told:
            self._told.add(f"{name} {where}")
            text = (
                f"torch compiles {name!r} ({where}) no more: it was compiled {limit} times, since growing changes the "
                "model, and inputs their shapes. What it was compiled for stays fast, all else runs eagerly from here "
                f"on. Raise torch._dynamo.config.{setting} before training, compile with dynamic=True, or train "
                "without torch.compile."
            )
            journal.write(Note(text=text))
