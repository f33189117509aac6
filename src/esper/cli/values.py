"""Values of a declared type, from a configuration file or the command line."""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from esper.contracts.errors import ConfigError

_DECIMAL = re.compile(r"[-+]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|inf|nan)", flags=re.IGNORECASE)
"""Numbers as text: Python also takes underscores, spaces and the digits of other scripts."""
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def fit(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint``; lists become tuples.

    Args:
        name: how to call it in the message.
        value: plain: number, text, bool, None, or list or mapping of them.
        hint: int, float, bool, str, None, a Literal, Sequence or Mapping of these, or a union.

    Raises:
        ConfigError: if it is of another type.
    """
    try:
        return _as_any(value, hint)
    except TypeError:
        raise ConfigError(f"{name} must be {_describe(hint)}, not {value!r}.") from None


def _as(value: Any, hint: Any) -> Any:
    origin = get_origin(hint)
    if origin is Literal and value in get_args(hint):
        return value
    if hint is float and (type(value) in (int, float) or is_decimal(value)):
        return float(value)  # YAML reads 3e-3 as text
    if hint in _NAMES and type(value) is hint:
        return value
    if origin is Sequence and isinstance(value, list | tuple):
        (inner,) = get_args(hint)
        return tuple(_as(item, inner) for item in value)
    if origin is Mapping and isinstance(value, dict):
        key_hint, inner = get_args(hint)
        return {_as(key, key_hint): _as_any(item, inner) for key, item in value.items()}
    raise TypeError


def _as_any(value: Any, hint: Any) -> Any:
    for alternative in alternatives(hint):
        try:
            return _as(value, alternative)
        except TypeError:
            continue
    raise TypeError


def is_decimal(value: Any) -> bool:
    """Whether it is a number written as text, in plain decimal digits."""
    return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(hint: Any) -> str:
    words = []
    for one in alternatives(hint):
        if get_origin(one) is Literal:
            words += [repr(choice) for choice in get_args(one)]
        elif get_origin(one) is Sequence:
            words.append("a list, each " + _describe(get_args(one)[0]))
        elif get_origin(one) is Mapping:
            words.append("a mapping of " + " to ".join(map(_describe, get_args(one))))
        else:
            words.append(_NAMES[one])
    return " or ".join(words)
