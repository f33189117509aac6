"""The tensor that a place writes, in whatever its module returns, and the one that it reads."""

import copy
import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from esper.contracts.errors import ConfigError


def written_tensor(output: Any, field: str | None) -> Tensor | None:
    """The tensor that grafts are added to: the output itself, ``field`` of a mapping or dataclass, else the first float
    tensor of two axes or more. A scalar, such as the loss that a model computes itself, is none.

    Raises:
        ConfigError: if the output has no such field, or it holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        return next(filter(_is_writable, output), None)
    fields = _fields(output)
    name = _name(fields, field)
    return None if name is None else fields[name]


def with_tensor(output: Any, field: str | None, y: Tensor) -> Any:
    """``output`` with another tensor in the place of :func:`written_tensor`; the original is not changed."""
    if isinstance(output, Tensor):
        return y
    if isinstance(output, tuple | list):
        index = _index(output)
        items = [*output[:index], y, *output[index + 1 :]]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    name = _name(_fields(output), field)
    assert name is not None
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[name] = y
        return changed
    return dataclasses.replace(output, **{name: y})


Form = tuple[Any, ...]
"""``("tensor",)``, ``("items", index, length)`` or ``("list", index)``, ``("named", field)`` for a named tuple,
``("mapping", field)`` or ``("dataclass", field)``."""


def form_of(output: Any, field: str | None) -> Form:
    """The form of an output that holds a tensor to write."""
    if isinstance(output, tuple | list):
        index = _index(output)
        if hasattr(output, "_fields"):
            return "named", output._fields[index]
        return ("list", index) if isinstance(output, list) else ("items", index, len(output))
    if isinstance(output, Tensor):
        return ("tensor",)
    return "mapping" if isinstance(output, Mapping) else "dataclass", _name(_fields(output), field)


def holds_scalar(output: Any) -> bool:
    """Whether a float scalar stands beside other things in an output: a loss that was computed inside."""
    items = output if isinstance(output, tuple | list) else _fields(output).values()
    return any(isinstance(item, Tensor) and item.dim() == 0 and item.is_floating_point() for item in items)


def first_tensor(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input that grafts read: the first tensor among the arguments, in the order of the module's signature."""
    where = first_tensor_at(module, args, kwargs)
    if where is None:
        return None
    found: Tensor = kwargs[where] if isinstance(where, str) else args[where]
    return found


def first_tensor_at(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Where :func:`first_tensor` lies: position or name of the argument; None if there is none."""
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            return index
    kind: Any = type(module)
    names = dict.fromkeys((*_parameters(kind), *kwargs)) if kwargs else ()
    return next((name for name in names if isinstance(kwargs.get(name), Tensor)), None)


@cache
def _parameters(kind: Any) -> tuple[str, ...]:
    """Names of what a module's forward takes; one that only passes on what it gets takes what the class below does."""
    for one in kind.__mro__:
        names = tuple(inspect.signature(vars(one)["forward"]).parameters) if "forward" in vars(one) else ()
        if names not in ((), ("self", "args", "kwargs")):
            return names
    return ()


def _is_writable(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point() and item.dim() >= 2


def _index(items: Iterable[Any]) -> int:
    return next(index for index, item in enumerate(items) if _is_writable(item))


def _fields(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    if dataclasses.is_dataclass(output):
        return {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    return {}


def _name(fields: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is None:
        return next((name for name, value in fields.items() if _is_writable(value)), None)
    if not isinstance(fields.get(wanted), Tensor):
        tensors = ", ".join(name for name, value in fields.items() if isinstance(value, Tensor)) or "none"
        raise ConfigError(f"output_fields: the output has no tensor {wanted!r}. Its tensors: {tensors}.")
    return wanted
