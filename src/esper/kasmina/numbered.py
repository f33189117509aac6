"""Numbers by which operators in a compiled graph find the objects that they work on: a graph holds plain values."""

import itertools
from typing import Any
from weakref import WeakValueDictionary

_OBJECTS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()


def numbered(one: Any) -> int:
    """A number of its own for an object, which does not keep it alive; never that of another one."""
    number = next(_numbers)
    _OBJECTS[number] = one
    return number


def by_number(number: int) -> Any:
    """The object."""
    return _OBJECTS[number]
