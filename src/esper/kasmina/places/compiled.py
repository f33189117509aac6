"""What grows at a place, as a compiled model calls it: one operator, whose inside the compiler does not see.

Which grafts there are, how far they are blended in, how large the arena is: all of it is looked up when the operator
runs, so no change of it makes torch trace the model again. What autograd keeps of the grafts hangs on a tensor that
torch keeps for the backward pass, in which the gradient of their parameters is handed to the arena. So the operator
stands between the CUDA graphs of ``mode="reduce-overhead"`` and is in none of them.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from esper.kasmina.numbered import by_number

Gradients = tuple[Tensor, Tensor | None]
"""Of what the host wrote, and of what it read."""


def _dispatch_keys() -> tuple[Any, Any]:
    return torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


with ThreadPoolExecutor(1) as _new_thread:  # this one may be in inference mode
    OUTSIDE = _new_thread.submit(_dispatch_keys).result()
"""What torch's dispatcher takes and leaves out where no operator runs and no mode holds."""


@dataclass(frozen=True)
class Pass:
    """The way back of a compiled pass.

    Args:
        grown: what the place gave.
        y: what its host wrote, as autograd knows it.
        x: what that read, likewise.
        slots: parameters of the grafts.
        keep: called with the gradient.
    """

    grown: Tensor
    y: Tensor
    x: Tensor | None
    slots: nn.Parameter
    keep: Callable[[Tensor], None]

    def backward(self, grad: Tensor) -> Gradients:
        """Add the gradient of the slots to what they have.

        Args:
            grad: of what the place gave.

        Returns:
            Gradients of ``y`` and ``x``.
        """
        self.keep(grad)
        y, x, slots = self.y, self.x, self.slots
        sources = [y, *([] if x is None else [x]), *([slots] if slots.requires_grad else [])]
        is_kept = torch._C._autograd._get_current_graph_task_keep_graph()
        found = torch.autograd.grad(self.grown, sources, grad, retain_graph=is_kept, allow_unused=True)
        grads = dict(zip(map(id, sources), found, strict=True))
        if (grad_slots := grads.get(id(slots))) is not None:
            slots.grad = grad_slots if slots.grad is None else slots.grad + grad_slots
        return _or_nothing(grads[id(y)], y), None if x is None else _or_nothing(grads[id(x)], x)


class Growing(Protocol):
    """A place, as the operator calls it."""

    def grow(self, y: Tensor, x: Tensor | None, *, senses: bool, learns: bool) -> tuple[Tensor, Pass | None]:
        """What the host wrote, ``y``, with all grafts, ``x`` is what it read; and, if it learns, the way back."""


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
    result: Tensor = torch.ops.esper.grow(y, x, may_learn, place, senses, precision)[0]
    return result


@torch.library.custom_op("esper::grow", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _grow(
    y: Tensor, x: Tensor | None, learns: Tensor | None, place: int, senses: bool, precision: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    result, passed = _run(y, x, place, senses=senses, learns=learns is not None, precision=precision)
    ticket = _ticket(y)
    ticket.passed = passed  # type: ignore[attr-defined]
    return result.clone() if result is y else result, ticket


@torch.library.custom_op("esper::grow_backward", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _grow_backward(
    grad: Tensor,
    y: Tensor,
    x: Tensor | None,
    ticket: Tensor,
    place: int,
    senses: bool,
    precision: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    passed: Pass | None = getattr(ticket, "passed", None)
    if passed is None:  # what keeps tensors elsewhere until the backward pass gives others back
        _, passed = _run(y, x, place, senses=senses, learns=True, precision=precision)
    assert passed is not None
    with _as_outside(y, precision):
        grad_y, grad_x = passed.backward(grad)
    if grad_y is grad:
        grad_y = grad.clone()
    return grad_y, grad.new_empty(0) if grad_x is None else grad_x, grad.new_zeros((), dtype=torch.float32)


@_grow.register_fake
def _(y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y), _ticket(y)


@_grow_backward.register_fake
def _(grad: Tensor, y: Tensor, x: Tensor | None, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = grad.new_empty(0) if x is None else torch.empty_like(x)
    return torch.empty_like(y), grad_x, grad.new_empty((), dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    y, x, _, *ctx.about = inputs
    ctx.save_for_backward(y, x, output[1])


def _gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    grads = torch.ops.esper.grow_backward(grad, *ctx.saved_tensors, *ctx.about)
    needed = (grad if is_needed else None for grad, is_needed in zip(grads, ctx.needs_input_grad, strict=False))
    return *needed, None, None, None


_grow.register_autograd(_gradients, setup_context=_keep)


def _run(
    y: Tensor, x: Tensor | None, place: int, *, senses: bool, learns: bool, precision: torch.dtype | None
) -> tuple[Tensor, Pass | None]:
    with _as_outside(y, precision), torch.set_grad_enabled(learns):
        growing: Growing = by_number(place)
        return growing.grow(y, x, senses=senses, learns=learns)


def _or_nothing(grad: Tensor | None, like: Tensor) -> Tensor:
    """Minus zero for a gradient that does not exist: added to any other, it leaves all of its bits."""
    return torch.full_like(like, -0.0) if grad is None else grad


def _ticket(y: Tensor) -> Tensor:
    """A tensor without numbers: it lives as long as torch may need the backward pass, and so does what hangs on it."""
    return torch.empty(0, dtype=torch.int8, device=y.device)


@contextmanager
def _as_outside(y: Tensor, precision: torch.dtype | None) -> Iterator[None]:
    """As outside of any operator, where there are autograd and ``torch.vmap``; in the pass's precision."""
    with (
        torch._C._ForceDispatchKeyGuard(*OUTSIDE),
        torch.autocast(y.device.type, precision, enabled=precision is not None),
    ):
        yield
