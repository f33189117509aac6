"""Grafts of a group: one operation with a backward pass, where a kernel knows them."""

# G grafts, N parameters of one graft, S slots, B samples, P positions, C channels

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from esper.contracts.errors import ConfigError
from esper.kasmina.kernels.choice import uses_triton
from esper.kasmina.kernels.grafts.family import Shape
from esper.kasmina.kernels.grafts.layout import MOST_PUT_ASIDE, Spots
from esper.kasmina.kernels.grafts.owning import is_nobody_elses

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

Twin = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""The same in plain PyTorch: what the host wrote, its input if grafts read it, and slots, to the output."""


class Seeds(Protocol):
    """State of a place's seeds, each ``[seeds]``."""

    lifecycle: Tensor
    alpha: Tensor
    fault: Tensor
    loss_scale: Tensor | None


class Batch(NamedTuple):
    """Grafts that a kernel computes at once.

    Args:
        shape: of each.
        spots: where they write.
        slots: int64 ``[G]``, the row of parameters of each.
        seeds: int64 ``[G]``, the first seed of each.
        is_live: whether they are scaled by an alpha; fossils count in full.
        bit: which fault to raise.
    """

    shape: Shape
    spots: Spots
    slots: Tensor
    seeds: Tensor
    is_live: bool
    bit: int

    def may_be_put_aside(self, y: Tensor) -> bool:
        """Whether to write over an output, or its gradient, moves fewer bytes than a new one."""
        return self.spots.grafts * self.shape.channels <= MOST_PUT_ASIDE * y.shape[-1]


class About(NamedTuple):
    """A pass.

    Args:
        fault: where faults are raised, int8 ``[seeds]``; None raises none.
        scale: scalar, of the loss, if there is one: while it is above 1 no fault is raised in the backward pass, and
            gradients that are not finite are infinite.
        x_is_finite: bool ``[1]``, of the place's input; needed where that is read and faults are raised.
        dot: dtype of products.
    """

    fault: Tensor | None
    scale: Tensor | None
    x_is_finite: Tensor | None
    dot: torch.dtype


def takes(y: Tensor, slots_SN: Tensor) -> bool:
    """Whether there is a kernel for such tensors.

    Raises:
        ConfigError: if grafts are on another device than what they read.
    """
    if y.device != slots_SN.device:
        raise ConfigError(
            f"The host's output is on {y.device} and its grafts are on {slots_SN.device}. Move the whole model: "
            "model.to(device)."
        )
    if not uses_triton(y) or torch._C._are_functorch_transforms_active():
        return False
    is_known = y.dtype in DTYPES and slots_SN.dtype in DTYPES and y.numel() > 0
    return is_known and (y.dtype == slots_SN.dtype or torch.is_autocast_enabled(y.device.type))


def grown(
    y: Tensor,
    x: Tensor | None,
    slots_SN: Tensor,
    batch: Batch,
    state: Seeds,
    twin: Twin,
    x_is_finite: Tensor | None,
    *,
    raises_faults: bool,
    may_write_over: bool,
) -> Tensor:
    """What the host wrote, with all grafts of a batch.

    Args:
        y: what the host wrote, ``[..., C]``.
        x: the place's input, ``[..., inputs]`` at the positions of ``y``, if that is what grafts read.
        slots_SN: parameters, a row for each slot.
        batch: the grafts.
        state: of the place's seeds; faults are raised there.
        twin: computes the gradients where these are to be differentiated once more.
        x_is_finite: bool ``[1]``; needed where faults are raised by grafts that read ``x``.
        raises_faults: whether what is not finite is noted.
        may_write_over: whether ``y`` is nobody else's, so that the output may have its memory.
    """
    kind = y.device.type
    dot = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else y.dtype
    fault, scale = (state.fault, state.loss_scale) if raises_faults else (None, None)
    writes_over = may_write_over and batch.may_be_put_aside(y)
    about = About(fault, scale, x_is_finite, dot)
    result: Tensor = Grown.apply(y, x, slots_SN, batch, state, twin, about, writes_over)
    return result


class Grown(Function):
    """Arguments of ``apply`` as of :func:`grown`, and the pass."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor | None,
        slots_SN: Tensor,
        batch: Batch,
        state: Seeds,
        twin: Twin,
        about: About,
        writes_over: bool,
    ) -> Tensor:
        from esper.kasmina.kernels.grafts import launch

        out, kept = launch.forward(y, x, slots_SN, batch, state, about, may_write_over=writes_over)
        ctx.save_for_backward(y, x, slots_SN, *kept)
        ctx.batch, ctx.about, ctx.twin = batch, about, twin
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        is_sole = is_nobody_elses(grads)
        from esper.kasmina.kernels.grafts import launch

        (grad,), (y, x, slots_SN, *kept) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients' own gradients are asked for
            if kept[-1] is not None:
                y = Restored.apply(y, kept[-1], ctx.batch)
            return *_differentiable(ctx.twin, y, x, slots_SN, grad), *[None] * 5
        read, learns = y if x is None else x, ctx.needs_input_grad[2]
        may_write_over = is_sole and ctx.batch.may_be_put_aside(grad)
        with torch.autocast(grad.device.type, enabled=False):
            grad_y, grad_SN, grad_x = launch.backward(
                grad, read, slots_SN, kept, ctx.batch, ctx.about, learns=learns, may_write_over=may_write_over
            )
        return grad_y, None if grad_x is None else grad_x.to(x.dtype), grad_SN, *[None] * 5


class Restored(Function):
    """What the host wrote, where it was written over: the output, what was put aside, and the grafts."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, aside: Tensor, batch: Batch) -> Tensor:
        within_K = torch.arange(batch.shape.channels, device=y.device)
        channels = (batch.spots.first_T[: batch.spots.grafts, None] + within_K).flatten()
        return y.index_copy(-1, channels, aside[..., : len(channels)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *grads, None, None


def _differentiable(twin: Twin, y: Tensor, x: Tensor | None, slots_SN: Tensor, grad: Tensor) -> list[Tensor | None]:
    """Gradients of all three, with a graph of their own."""
    given = (y, x, slots_SN)
    needed = [one for one in given if one is not None and one.requires_grad]
    found = torch.autograd.grad(twin(*given), needed, grad, create_graph=True, allow_unused=True)
    by_id = dict(zip(map(id, needed), found, strict=True))
    return [by_id.get(id(one)) for one in given]
