"""Grafts that read and write chunks of channels: one operation with a backward pass, where a kernel knows them."""

# G grafts, N parameters of one graft, S slots, B samples, P positions, C channels

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.autograd import Function

from esper.blueprints.blueprint import Recipe
from esper.contracts.errors import ConfigError
from esper.kasmina.kernels.choice import uses_triton
from esper.kasmina.kernels.grafts.family import Shape
from esper.kasmina.kernels.grafts.layout import Spots

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

Twin = Callable[[Tensor, Tensor], Tensor]
"""The same in plain PyTorch: what the host wrote, and slots, to the output."""


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

    @classmethod
    def of(
        cls,
        blueprint: Recipe,
        channels: Sequence[tuple[int, int]],
        num_channels: int,
        *about: Any,
        device: torch.device,
    ) -> Self | None:
        """None where no kernel knows the blueprint.

        Args:
            blueprint: of all of them.
            channels: first channel of each, and the end.
            num_channels: of the place.
            about: the other attributes.
            device: where they work.
        """
        width = channels[0][1] - channels[0][0]
        shape = Shape.of(blueprint, width)
        if shape is None:
            return None
        return cls(shape, Spots.of([first for first, _ in channels], width, num_channels, device), *about)


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


def grown(y: Tensor, slots_SN: Tensor, batch: Batch, state: Seeds, twin: Twin, *, raises_faults: bool) -> Tensor:
    """What the host wrote, with all grafts of a batch.

    Args:
        y: what the host wrote, ``[..., C]``.
        slots_SN: parameters, a row for each slot.
        batch: the grafts.
        state: of the place's seeds; faults are raised there.
        twin: computes the gradients where these are to be differentiated once more.
        raises_faults: whether what is not finite is noted.
    """
    kind = y.device.type
    dot = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else y.dtype
    result: Tensor = Grown.apply(y, slots_SN, batch, state, twin, raises_faults, dot)
    return result


class Grown(Function):
    """Arguments of ``apply`` as of :func:`grown`, and the dtype of products."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        slots_SN: Tensor,
        batch: Batch,
        state: Seeds,
        twin: Twin,
        raises_faults: bool,
        dot: torch.dtype,
    ) -> Tensor:
        from esper.kasmina.kernels.grafts import launch

        fault = state.fault if raises_faults else None
        out, found = launch.forward(y, slots_SN, batch, state, fault, dot)
        ctx.save_for_backward(y, slots_SN, *found)
        ctx.about = batch, fault, state.loss_scale if raises_faults else None, dot
        ctx.twin = twin
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        from esper.kasmina.kernels.grafts import launch

        (grad,), (y, slots_SN, *found) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradients' own gradients are asked for
            return *_differentiable(ctx.twin, y, slots_SN, grad), *[None] * 5
        grad_y, grad_SN = launch.backward(grad, y, slots_SN, *found, *ctx.about, learns=ctx.needs_input_grad[1])
        return grad_y, grad_SN, *[None] * 5


def _differentiable(twin: Twin, y: Tensor, slots_SN: Tensor, grad: Tensor) -> list[Tensor | None]:
    """Gradients of both, with a graph of their own."""
    needed = [one for one in (y, slots_SN) if one.requires_grad]
    found = torch.autograd.grad(twin(y, slots_SN), needed, grad, create_graph=True, allow_unused=True)
    given = dict(zip(map(id, needed), found, strict=True))
    return [given.get(id(one)) for one in (y, slots_SN)]
