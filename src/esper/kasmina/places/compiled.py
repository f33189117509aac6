"""What grows at a place, as a compiled model calls it: one operator, whose inside the compiler does not see.

Which grafts there are, how far they are blended in, how large the arena is: all of it is looked up when the operator
runs, so no change of it makes torch trace the model again. The backward pass computes the grafts once more, with
gradients, from what the host wrote and read, and hands that of their parameters to the arena. So the operator stands
between the CUDA graphs of ``mode="reduce-overhead"`` and is in none of them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C import DispatchKey

from esper.kasmina.numbered import by_number

Gradients = tuple[Tensor, Tensor | None]
"""Of what the host wrote, and of what it read."""


class Growing(Protocol):
    """A place, as the operator calls it."""

    def grow(self, y: Tensor, x: Tensor | None, *, senses: bool, learns: bool) -> Tensor:
        """What the host wrote, ``y``, with all grafts; ``x`` is what it read."""

    def grow_again(self, y: Tensor, x: Tensor | None, grad: Tensor, *, senses: bool) -> Gradients:
        """The backward pass of :meth:`grow`, whose output has the gradient ``grad``."""


def grown(place: int, y: Tensor, x: Tensor | None, learns: Tensor, *, senses: bool) -> Tensor:
    """Call the operator, in a pass that is being compiled.

    Args:
        place: its number.
        y: what the host wrote.
        x: what it read.
        learns: scalar with a gradient of its own, for a host that has none.
        senses: whether the pass may leave something behind.
    """
    device = y.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    may_learn = learns if torch.is_grad_enabled() else None
    result: Tensor = torch.ops.esper.grow(y, x, may_learn, place, senses, precision)
    return result


@torch.library.custom_op("esper::grow", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _grow(
    y: Tensor, x: Tensor | None, learns: Tensor | None, place: int, senses: bool, precision: torch.dtype | None
) -> Tensor:
    with torch.no_grad(), _autocast(y, precision):
        growing: Growing = by_number(place)
        result = growing.grow(y, x, senses=senses, learns=learns is not None)
    return result.clone() if result is y else result


@torch.library.custom_op("esper::grow_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _grow_backward(
    grad: Tensor, y: Tensor, x: Tensor | None, place: int, senses: bool, precision: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    with _recorded(), _autocast(y, precision):
        growing: Growing = by_number(place)
        grad_y, grad_x = growing.grow_again(y, x, grad, senses=senses)
    if grad_y is grad:
        grad_y = grad.clone()
    return grad_y, grad.new_empty(0) if grad_x is None else grad_x, grad.new_zeros((), dtype=torch.float32)


@_grow.register_fake
def _(y: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(y)


@_grow_backward.register_fake
def _(grad: Tensor, y: Tensor, x: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = grad.new_empty(0) if x is None else torch.empty_like(x)
    return torch.empty_like(y), grad_x, grad.new_empty((), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, x, _, *ctx.about = inputs
    ctx.save_for_backward(y, x)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    y, x = ctx.saved_tensors
    grads = torch.ops.esper.grow_backward(grad, y, x, *ctx.about)
    needed = (grad if is_needed else None for grad, is_needed in zip(grads, ctx.needs_input_grad, strict=False))
    return *needed, None, None, None


_grow.register_autograd(_gradients, setup_context=_keep)


def _autocast(y: Tensor, precision: torch.dtype | None) -> torch.autocast:
    return torch.autocast(y.device.type, precision, enabled=precision is not None)


@contextmanager
def _recorded() -> Iterator[None]:
    """Autograd, which torch leaves out of what runs inside an operator."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for key in (DispatchKey.AutogradFunctionality, DispatchKey.ADInplaceOrView):
            stack.enter_context(torch._C._SetExcludeDispatchKeyGuard(key, False))
        yield
