"""Containment: a graft that produces a non-finite value is the identity in that very forward and backward.

Legend: G grafts of a group, N parameters of one graft.

One autograd function stands where activations and parameters enter the grafts, one where the deltas leave. The exit
notes whether the gradient that came in from the host was finite; the entry, which runs last in the backward pass, sees
all that a graft would hand to the host and to its own parameters, and drops the whole of it if any of it is not
finite. Values are selected, never multiplied by zero: 0 * nan is nan.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

LIVE_FAULT, FOSSIL_FAULT = 1, 2


def finite_G(values: Tensor) -> Tensor:
    """Bool ``[G]``: whether all values of a graft, ``values[g]``, are finite."""
    return torch.isfinite(values).flatten(1).all(dim=1)


def select_G(keep: Tensor, values: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """``values`` where ``keep [G]`` is true, else ``otherwise``, for every element of a graft."""
    return torch.where(keep.view(-1, *[1] * (values.dim() - 1)), values, otherwise)


class Watch:
    """Links entry and exit of one call, and raises the faults of its grafts.

    Args:
        fault: the place's ``fault`` column, written in place.
        seeds: int64 ``[G]``, first seed of each graft.
        bit: which fault to raise.
        may_blame_G: bool ``[G]``, false for grafts whose input came non-finite from the host. None blames nobody.
    """

    def __init__(self, fault: Tensor, seeds: Tensor, bit: int, may_blame_G: Tensor | None) -> None:
        self._fault, self._seeds, self._bit, self._may_blame_G = fault, seeds, bit, may_blame_G
        self.incoming_is_finite: Tensor | None = None

    def blame(self, is_faulty: Tensor) -> None:
        """Raise the fault bit of the seeds of grafts that are faulty by themselves."""
        if self._may_blame_G is None:
            return
        with torch.no_grad():
            old = self._fault[self._seeds]
            self._fault[self._seeds] = torch.where(is_faulty & self._may_blame_G, old | self._bit, old)


class Entry(torch.autograd.Function):
    """Identity on ``(x_G, params_GN)``; its backward drops every contribution of a faulty graft."""

    @staticmethod
    def forward(ctx: Any, x_G: Tensor, params_GN: Tensor, watch: Watch) -> tuple[Tensor, Tensor]:
        ctx.watch = watch
        ctx.set_materialize_grads(False)
        outputs = x_G.view_as(x_G), params_GN.view_as(params_GN)
        ctx.mark_non_differentiable(
            *(out for out, is_needed in zip(outputs, ctx.needs_input_grad[:2], strict=True) if not is_needed)
        )
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        watch = ctx.watch
        present = [grad for grad in grads if grad is not None]
        if watch.incoming_is_finite is None or not present:  # the deltas never reached the loss
            return *grads, None
        is_finite = torch.stack([finite_G(grad) for grad in present]).all(dim=0)
        is_faulty = ~is_finite & watch.incoming_is_finite
        watch.blame(is_faulty)
        return *(None if grad is None else select_G(~is_faulty, grad) for grad in grads), None


class Exit(torch.autograd.Function):
    """Identity on ``delta_G``; its backward notes whether the host's gradient was finite."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta_G: Tensor, watch: Watch) -> Tensor:
        ctx.watch = watch  # type: ignore[attr-defined]
        return delta_G.view_as(delta_G)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        ctx.watch.incoming_is_finite = finite_G(grads[0])
        return grads[0], None
