"""What must be changed in one JSON value to get another one: ``page/live/live.js`` applies it."""

from collections.abc import Iterator
from typing import Any, Literal

Path = tuple[str | int, ...]
Change = tuple[Path, Literal["set", "add"], Any]

MOST = 40
"""Changes within one list; where there are more, it is sent as a whole."""


def changes(old: Any, new: Any, path: Path = ()) -> list[Change]:
    """In order: a path, and a value to set there, or items to add to the end of the list there."""
    return list(_changes(old, new, path))


def _changes(old: Any, new: Any, path: Path) -> Iterator[Change]:
    if old is new or (type(old) is type(new) and old == new):
        return
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for key, value in new.items():
            yield from _changes(old[key], value, (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and 0 < len(old) <= len(new):
        within = [one for at, value in enumerate(old) for one in _changes(value, new[at], (*path, at))]
        if len(within) > MOST:
            yield path, "set", new
            return
        yield from within
        if len(new) > len(old):
            yield path, "add", new[len(old) :]
    else:
        yield path, "set", new
