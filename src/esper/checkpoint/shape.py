"""Whether a nested state is what an annotation says, all the way down."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from esper.contracts.errors import CheckpointError


def check_shape(value: Any, kind: Any, path: str) -> None:
    """Refuse a state that is not what an annotation says.

    Args:
        value: the state.
        kind: a class, ``Any``, a union, a ``Literal``, ``list``, ``dict`` and ``tuple`` of such, a ``TypedDict`` (which
            may have further keys), or a dataclass, which stands for the dict of its fields.
        path: of the state, for the message.

    Raises:
        CheckpointError: naming the first part that differs.
    """
    for where, part, expected in _misfits(value, kind, path):
        raise CheckpointError(f"The checkpoint does not fit: {where} is {_shown(part)}, not {_name(expected)}.")


def _misfits(value: Any, kind: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, part and what it should be, of every part that differs."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return
    if origin in (typing.Union, types.UnionType):
        if all(any(True for _ in _misfits(value, one, path)) for one in arguments):
            yield _deepest(value, arguments, path) or (path, value, kind)
    elif origin is typing.Literal:
        if value not in arguments:
            yield path, value, kind
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _misfits(item, arguments[0], f"{path}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _misfits(key, arguments[0], f"a key of {path}")
            yield from _misfits(item, arguments[1], f"{path}[{key!r}]")
    elif origin is tuple and isinstance(value, tuple) and len(value) == len(arguments):
        for index, (item, one) in enumerate(zip(value, arguments, strict=True)):
            yield from _misfits(item, one, f"{path}[{index}]")
    elif (named := _fields(kind)) is not None and isinstance(value, dict):
        yield from _misfits_of_fields(value, named, path, may_have_more=not dataclasses.is_dataclass(kind))
    elif origin is not None or named is not None or not _is_a(value, kind):
        yield path, value, kind


def _misfits_of_fields(
    value: dict[Any, Any], named: Mapping[str, Any], path: str, *, may_have_more: bool
) -> Iterator[tuple[str, Any, Any]]:
    for name, one in named.items():
        if name in value:
            yield from _misfits(value[name], one, f"{path}.{name}" if path else name)
        else:
            yield f"{path}.{name}" if path else name, _Missing, one
    for name in () if may_have_more else value.keys() - named.keys():
        yield f"{path}.{name}", value[name], _Nothing


class _Missing:
    pass


class _Nothing:
    pass


def _deepest(value: Any, kinds: tuple[Any, ...], path: str) -> tuple[str, Any, Any] | None:
    """What differs within the one kind of a union that the value is meant to be, if that can be told."""
    inner = [found for one in kinds for found in _misfits(value, one, path) if found[0] != path]
    return inner[0] if inner else None


def _fields(kind: Any) -> Mapping[str, Any] | None:
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        return typing.get_type_hints(kind)
    return None


def _is_a(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool):
        return type(value) is kind
    if issubclass(kind, Enum):
        return type(value) is int and value in {member.value for member in kind}
    return isinstance(value, kind)


def _shown(value: Any) -> str:
    return "missing" if value is _Missing else f"a {type(value).__name__}"


def _name(kind: Any) -> str:
    if kind is _Nothing:
        return "anything of this version of Esper"
    return kind.__name__ if isinstance(kind, type) else str(kind)
