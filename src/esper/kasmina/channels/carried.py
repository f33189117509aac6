"""New channels that travel beside the host's own, through whatever the host does between two of its layers.

A layer that writes new channels returns a :class:`Carried`: the host's tensor, with the new channels hung onto it. All
that the host's code does with it is done with the host's tensor, by the same operations on the same bytes as without
them, so that growth cannot change what the host computes. What treats every channel by itself (:mod:`rules`) is done
with the new channels too; anything else leaves them behind.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Channels(NamedTuple):
    """Which new channels: those of one graft in one class.

    Args:
        layer_id: of the colony.
        lifecycle: of the graft.
        group: number of the class within the colony.
    """

    layer_id: str
    lifecycle: int
    group: int


class New(NamedTuple):
    """New channels, of the shape of the host's tensor but for the axis of the channels.

    Args:
        tensor: their values.
        axis: of the channels, counted from the front.
        positions: that share this axis with them, each with all channels in a row; 1 where none do.
    """

    tensor: Tensor
    axis: int
    positions: int = 1


Beside = Mapping[Channels, New]


class Carried(Tensor):
    """A host's tensor with new channels beside it.

    Attributes:
        host: the host's tensor as it was; in a compiled pass what is beside it is left by taking that.
        beside: the new channels.
    """

    host: Tensor
    beside: Beside

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule, kwargs = RULES.get(func, leave_behind), dict(kwargs or {})
        if rule is not leave_behind:  # rules take the first ones by position
            args = (*args, *(kwargs.pop(name) for name in OPERANDS[len(args) :] if name in kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return rule(func, args, kwargs)


Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

OPERANDS = ("input", "other")
"""What torch calls the first arguments of a function that has a rule."""

RULES: dict[Any, Rule] = {}
"""What is done with new channels, by torch's function; filled by :mod:`rules`."""


class Listener(Protocol):
    """Hears what becomes of channels while a model is traced."""

    def meet(self, ours: Beside, theirs: Beside) -> None:
        """Two tensors with channels were put together channel by channel."""

    def meet_plain(self, ours: Beside, other: Tensor, *, is_sum: bool) -> None:
        """A tensor with channels met one as wide as them that has none: added to it, or multiplied with it."""

    def lose(self, beside: Beside, operation: str) -> None:
        """They went into something that is not known to treat every channel by itself."""


listeners: list[Listener] = []
"""Those that hear now; empty but while a model is traced."""


def carry(y: Tensor, beside: Beside) -> Tensor:
    """The host's tensor with new channels beside it; itself where there are none."""
    if not beside:
        return y
    carried = y.as_subclass(Carried)
    carried.host, carried.beside = y, beside
    return carried


def carried_by(x: object) -> Beside:
    """The new channels beside a tensor; none where it is a plain one."""
    return x.beside if isinstance(x, Carried) else {}


def plain(x: Any) -> Any:
    """A tensor without what is beside it; what is no such tensor as it is."""
    if not isinstance(x, Carried):
        return x
    return x.host if torch.compiler.is_compiling() else x.as_subclass(Tensor)


def leave_behind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is not known to treat every channel by itself: it is done with the host's tensors alone."""
    output = func(*args, **kwargs)
    if listeners and _holds_tensor(output):
        name = getattr(func, "__name__", str(func))
        for one in _tensors((args, kwargs)):
            for listener in listeners:
                listener.lose(one.beside, name)
    return plain(output)


def _holds_tensor(output: Any) -> bool:
    if isinstance(output, list | tuple) and not isinstance(output, torch.Size):
        return any(map(_holds_tensor, output))
    return isinstance(output, Tensor)


def _tensors(values: Any) -> list[Carried]:
    if isinstance(values, Carried):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [one for value in values for one in _tensors(value)] if isinstance(values, list | tuple) else []
