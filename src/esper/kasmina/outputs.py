"""The tensor that a place writes, in whatever its module returns."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from esper.contracts.errors import ConfigError


def written_tensor(output: Any, field: str | None) -> Tensor | None:
    """The tensor that grafts are added to: ``field`` of a mapping or dataclass, else the first tensor there is.

    Raises:
        ConfigError: if the output has no such field, or it holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple | list):
        return next((item for item in output if isinstance(item, Tensor)), None)
    fields = _fields(output)
    name = _name(fields, field)
    return None if name is None else fields[name]


def with_tensor(output: Any, field: str | None, y: Tensor) -> Any:
    """``output`` with another tensor in the place of :func:`written_tensor`; the original is not changed."""
    if isinstance(output, Tensor):
        return y
    if isinstance(output, tuple | list):
        index = next(index for index, item in enumerate(output) if isinstance(item, Tensor))
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
    """The form of an output that holds a tensor."""
    if isinstance(output, tuple | list):
        index = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
        if hasattr(output, "_fields"):
            return "named", output._fields[index]
        return ("list", index) if isinstance(output, list) else ("items", index, len(output))
    if isinstance(output, Tensor):
        return ("tensor",)
    return "mapping" if isinstance(output, Mapping) else "dataclass", _name(_fields(output), field)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The input that grafts read: the first tensor among the arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def first_tensor_at(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | str | None:
    """Where :func:`first_tensor` lies: position or name of the argument; None if there is none."""
    named: tuple[tuple[int | str, Any], ...] = (*enumerate(args), *kwargs.items())
    return next((where for where, value in named if isinstance(value, Tensor)), None)


def _fields(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    if dataclasses.is_dataclass(output):
        return {one.name: getattr(output, one.name) for one in dataclasses.fields(output)}
    return {}


def _name(fields: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is None:
        return next((name for name, value in fields.items() if isinstance(value, Tensor)), None)
    if not isinstance(fields.get(wanted), Tensor):
        tensors = ", ".join(name for name, value in fields.items() if isinstance(value, Tensor)) or "none"
        raise ConfigError(f"output_fields: the output has no tensor {wanted!r}. Its tensors: {tensors}.")
    return wanted
