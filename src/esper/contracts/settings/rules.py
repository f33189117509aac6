"""What a setting may be: a rule stands beside its default."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from esper.contracts.errors import ConfigError


class Rule(NamedTuple):
    """What is allowed, as a predicate, and in words behind "must be"."""

    allows: Callable[[Any], bool]
    wanted: str


def setting(default: Any, rule: Rule) -> Any:
    """A field of a frozen dataclass that :func:`check` looks at."""
    return field(default=default, metadata={"rule": rule})


def check(settings: Any) -> None:
    """Refuse values that a rule, or a Literal type, does not allow.

    Args:
        settings: a dataclass whose fields may be of :func:`setting`.

    Raises:
        ConfigError: naming the setting, what it must be, and its value.
    """
    rules = {one.name: one.metadata["rule"] for one in fields(settings) if "rule" in one.metadata}
    for name, hint in get_type_hints(type(settings)).items():
        if get_origin(hint) is Literal:
            options = get_args(hint)
            rules[name] = Rule(options.__contains__, " or ".join(map(repr, options)))
    for name, rule in rules.items():
        refuse_unless(rule.allows(getattr(settings, name)), settings, name, rule.wanted)


def refuse_unless(is_right: bool, settings: Any, name: str, wanted: str) -> None:
    """Raise the error of a wrong setting.

    Raises:
        ConfigError: unless ``is_right``.
    """
    if not is_right:
        raise ConfigError(f"{name} must be {wanted}, not {getattr(settings, name)!r}.")


def or_none(rule: Rule) -> Rule:
    """The rule, or None."""
    return Rule(lambda value: value is None or rule.allows(value), f"{rule.wanted}, or None")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of_names(value: object) -> bool:
    """Not a single string, which is a sequence of strings too."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return False
    return all(isinstance(name, str) for name in value)


def _are_looks(value: Any) -> bool:
    if not isinstance(value, Sequence) or not 1 <= len(value) <= 3 or not all(map(_is_number, value)):
        return False
    return list(value) == sorted(set(value)) and all(0 < look <= 1 for look in value)


NUMBER = Rule(_is_number, "a number")
ABOVE_0 = Rule(lambda value: _is_number(value) and value > 0, "above 0")
ABOVE_1 = Rule(lambda value: _is_number(value) and value > 1, "above 1")
AT_LEAST_0 = Rule(lambda value: _is_number(value) and value >= 0, "at least 0")
SHARE = Rule(lambda value: _is_number(value) and 0 < value <= 1, "in (0, 1]")
TENTH = Rule(lambda value: _is_number(value) and 0 < value <= 0.1, "in (0, 0.1]")
WHOLE = Rule(_is_whole, "a whole number")
WHOLE_FROM_0 = Rule(lambda value: _is_whole(value) and value >= 0, "a whole number >= 0")
WHOLE_FROM_1 = Rule(lambda value: _is_whole(value) and value >= 1, "a whole number >= 1")
CONFIDENCE = Rule(lambda value: _is_whole(value) and 0 <= value <= 3, "0 to 3")
LOOKS = Rule(_are_looks, "one to three rising fractions in (0, 1]")
ID = Rule(lambda value: isinstance(value, str), "an id")
SELECTION = Rule(lambda value: isinstance(value, str), "the name of a selection strategy")
IDS = Rule(lambda value: _is_list_of_names(value) and len(value) > 0, "a list of ids")
PATTERNS = Rule(_is_list_of_names, "a list of patterns")
PATTERNS_OR_COUNTS = Rule(
    lambda value: value is None or isinstance(value, Mapping) or _is_list_of_names(value),
    "a list of patterns, a mapping from patterns to numbers of seeds, or None",
)
AXES = or_none(
    Rule(
        lambda value: (
            isinstance(value, Mapping)
            and _is_list_of_names(list(value))
            and all(axis in (1, -1) and _is_whole(axis) for axis in value.values())
        ),
        "a mapping from patterns to 1 or -1",
    )
)
FIELD_NAMES = or_none(
    Rule(
        lambda value: isinstance(value, Mapping) and _is_list_of_names([*value, *value.values()]),
        "a mapping from patterns to names of fields",
    )
)
