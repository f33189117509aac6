"""Work that is done when all gradients of a step are there, just before the optimizer moves the parameters.

An optimizer may be given a *closure*, which makes the forward and the backward pass: it calls it at the beginning of
its step, and then moves the parameters. Trainers such as Lightning do so in every step.
"""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from esper.contracts.errors import ConfigError


def before_update(optimizer: Optimizer, work: Callable[[Optimizer], None]) -> RemovableHandle:
    """Have something done before every update of the parameters.

    Args:
        optimizer: whose step is hooked; work that was registered earlier is done earlier.
        work: called with the optimizer.

    Returns:
        Takes the hook away.

    The step raises ConfigError where it is given anything but a closure, and where it calls that more than once: Esper
    needs one forward and backward pass for each step.
    """

    def begin(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [value for value in (*args[1:], *kwargs.values()) if value is not None]  # args[0] is the optimizer
        if not given:
            work(optimizer)
            return None
        (closure, *others) = given
        if others or not callable(closure):
            raise ConfigError(f"optimizer.step takes a closure and nothing else, not {given!r:.80}.")
        return (args[0], _Once(closure, lambda: work(optimizer))), {}

    return optimizer.register_step_pre_hook(begin)


class _Once:
    """A closure, and what is done after it."""

    def __init__(self, closure: Callable[[], Any], work: Callable[[], None]) -> None:
        self._closure, self._work = closure, work
        self._was_called = False

    def __call__(self) -> Any:
        if self._was_called:
            raise ConfigError(
                "optimizer.step called its closure more than once. Esper needs one forward and backward pass for each "
                "step: use an optimizer that makes do with one."
            )
        self._was_called = True
        result = self._closure()
        self._work()
        return result
