"""Containment: a graft that produces a non-finite value is the identity in that very forward and backward.

Legend: G grafts of a group, N parameters of one graft, V samples that ``torch.func.vmap`` maps over.

One autograd function stands where activations and parameters enter the grafts, one where the deltas leave. The exit
notes whether the gradient that came in from the host was finite; the entry, which runs last in the backward pass, sees
all that a graft would hand to the host and to its own parameters, and drops the whole of it if any of it is not
finite. Values are selected, never multiplied by zero: 0 * nan is nan. The pieces of a colony share one watch: its
parameters enter once for all of them, what a piece reads of the host enters there.

What all grafts of a group read is shared by them in the forward pass. Their gradients of it are not: containment by
graft needs each by itself, so the backward pass holds them once, reads them three times and writes their sum alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

LIVE_FAULT, FOSSIL_FAULT = 1, 2


def finite_G(values: Tensor) -> Tensor:
    """Bool ``[G]``: whether all values of a graft, ``values[g]``, are finite."""
    if not values.numel():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    values = values.detach().flatten(1)  # the extremes, which take nan along, write nothing; isfinite writes it all
    if values.is_cuda:  # one kernel in place of two; on a CPU it is many times as slow
        return torch.linalg.vector_norm(values, torch.inf, dim=1) < torch.inf
    return (values.amax(1) < torch.inf) & (values.amin(1) > -torch.inf)


def select_G(keep: Tensor, values: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """``values`` where ``keep [G]`` is true, else ``otherwise``, for every element of a graft."""
    return torch.where(keep.view(-1, *[1] * (values.dim() - 1)), values, otherwise)


def _both(a_G: Tensor | None, b_G: Tensor) -> Tensor:
    return b_G if a_G is None else a_G & b_G


class Watch:
    """Links entries and exits of one call, and raises the faults of its grafts.

    Args:
        fault: the place's ``fault`` column, written in place.
        seeds: int64 ``[G]``, first seed of each graft.
        bit: which fault to raise.
        may_blame_G: bool ``[G]``, false for grafts whose input came non-finite from the host. None blames nobody.

    Attributes:
        incoming_is_finite: bool ``[G]``, whether all gradients were that came from the host so far; None before the
            first.
        is_faulty_G: bool ``[G]``, whether a graft's own gradients were not finite so far; None before the first.
    """

    def __init__(self, fault: Tensor, seeds: Tensor, bit: int, may_blame_G: Tensor | None) -> None:
        self._fault, self._seeds, self._bit, self._may_blame_G = fault, seeds, bit, may_blame_G
        self.incoming_is_finite: Tensor | None = None
        self.is_faulty_G: Tensor | None = None

    def meet(self, y_G: Tensor) -> None:
        """Note what the host wrote: nobody is blamed once it is not finite."""
        if self._may_blame_G is not None:
            self._may_blame_G = self._may_blame_G & finite_G(y_G)

    def receive(self, grad_G: Tensor) -> None:
        """Note a gradient that came from the host."""
        self.incoming_is_finite = _both(self.incoming_is_finite, finite_G(grad_G))

    def keeps(self, grads: Sequence[Tensor]) -> Tensor:
        """Bool ``[G]``: whether gradients of the grafts are to be handed on; those that are faulty are blamed."""
        if self.incoming_is_finite is None:  # the deltas never reached the loss
            return torch.ones(len(grads[0]), dtype=torch.bool, device=grads[0].device)
        is_finite_G = finite_G(grads[0])
        for grad in grads[1:]:
            is_finite_G = is_finite_G & finite_G(grad)
        is_faulty_G = ~is_finite_G & self.incoming_is_finite
        if self.is_faulty_G is not None:
            is_faulty_G = is_faulty_G | self.is_faulty_G
        self.is_faulty_G = is_faulty_G
        self.blame(is_faulty_G)
        return ~is_faulty_G

    def blame(self, is_faulty: Tensor) -> None:
        """Raise the fault bit of the seeds of grafts that are faulty by themselves."""
        if self._may_blame_G is None:
            return
        with torch.no_grad():
            old = self._fault[self._seeds]
            self._fault[self._seeds] = torch.where(is_faulty & self._may_blame_G, old | self._bit, old)


class Entry(Function):
    """Identity on ``(x, params_GN)``; its backward drops every contribution of a faulty graft.

    Args of ``apply``:
        x: ``[G, ...]``, or ``[...]`` where all grafts read the same.
        params_GN: their parameters.
        watch: of this call.
        is_shared: whether all grafts read the same; ``x`` comes out as a view ``[G, ...]`` then.
    """

    @staticmethod
    def forward(x: Tensor, params_GN: Tensor, watch: Watch, is_shared: bool) -> tuple[Tensor, Tensor]:
        x_G = x.expand(len(params_GN), *x.shape) if is_shared else x.view_as(x)
        return x_G, params_GN.view_as(params_GN)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, ctx.watch, ctx.is_shared = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(out for out, is_needed in zip(output, ctx.needs_input_grad[:2], strict=True) if not is_needed)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        watch, (grad_x_G, grad_GN) = ctx.watch, grads
        present = [grad for grad in grads if grad is not None]
        if not present:
            return None, None, None, None
        keep_G = watch.keeps(present)
        if grad_x_G is not None:
            is_sum = ctx.is_shared and len(grad_x_G) > 1
            grad_x_G = SumOfKept.apply(grad_x_G, keep_G) if is_sum else select_G(keep_G, grad_x_G)
            if ctx.is_shared and not is_sum:
                grad_x_G = grad_x_G.squeeze(0)
        return grad_x_G, None if grad_GN is None else select_G(keep_G, grad_GN), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, params_GN: Tensor, watch: Watch, is_shared: bool
    ) -> tuple[tuple[Tensor, Tensor], tuple[int | None, int | None]]:
        """The samples of the transform are one more axis of the batch, behind G."""
        x_dim, params_dim = in_dims[:2]
        if x_dim is not None:
            x = x.movedim(x_dim, 0 if is_shared else 1)
        if params_dim is not None:
            params_GN = params_GN.movedim(params_dim, 1)
        entered = Entry.apply(x, params_GN, watch, is_shared)
        return entered, (None if x_dim is None else 1, None if params_dim is None else 1)


class Exit(Function):
    """Identity on ``delta_G``; its backward notes whether the host's gradient was finite."""

    @staticmethod
    def forward(delta_G: Tensor, watch: Watch) -> Tensor:
        return delta_G.view_as(delta_G)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Watch], output: Tensor) -> None:
        ctx.watch = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        ctx.watch.receive(grads[0])
        return grads[0], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], delta_G: Tensor, watch: Watch) -> tuple[Tensor, int | None]:
        """As of the entry."""
        if in_dims[0] is None:
            return Exit.apply(delta_G, watch), None
        return Exit.apply(delta_G.movedim(in_dims[0], 1), watch), 1


class SumOfKept(Function):
    """Sum over the grafts that are kept: ``values [G, ...]``, ``keep_G`` to ``[...]``.

    Those that are not are summed into a second bag, which nobody reads. So nothing but the sum is written, where a
    selection would write all of ``values`` once more: at 64 grafts of 1 MB, 2 ms in place of 40.
    """

    @staticmethod
    def forward(values: Tensor, keep_G: Tensor) -> Tensor:
        order_G, count = keep_G.logical_not().argsort(stable=True), keep_G.sum()
        bags = F.embedding_bag(order_G, values.flatten(1), torch.stack([torch.zeros_like(count), count]), mode="sum")
        return bags[0].view(values.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        (keep_G,) = ctx.saved_tensors
        return select_G(keep_G, grads[0].expand(len(keep_G), *grads[0].shape)), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], values: Tensor, keep_G: Tensor) -> tuple[Tensor, int]:
        """Sums of bags have no rule of their own in torch 2.13, so this selects."""
        return torch.vmap(lambda values, keep: select_G(keep, values).sum(0), in_dims)(values, keep_G), 0
