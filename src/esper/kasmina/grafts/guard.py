"""Containment: a graft that produces a non-finite value is the identity in that very forward and backward.

Legend: G grafts of a group, N parameters of one graft, V samples that ``torch.func.vmap`` maps over.

One autograd function stands where activations and parameters enter the grafts, one where the deltas leave. A *mark*
goes from the first to the second, of whose values nobody makes use: its gradient tells the entry, which runs last in
the backward pass, whether all that came from the host was finite. The entry sees all that a graft would hand to the
host and to its own parameters, and drops the whole of it if any of it is not finite. It does so also where the host is
at fault, which then gets what it would get without the graft: a unit that it masked with -inf has a gradient of zero,
and that of the graft behind it is nan. Only parameters keep what a gradient of the host made of theirs, so that they
rest and a gradient scaler sees it. Values are selected, never multiplied by zero: 0 * nan is nan.

The parameters of a colony enter once for all of its pieces, what a piece reads of the host enters there; their marks
hang together, so that the fault of a piece takes back what all of them would do to the colony's parameters, and is
raised there, where all is known that came from the host.

What all grafts of a group read is shared by them in the forward pass. Their gradients of it are not: containment by
graft needs each by itself, so the backward pass holds them once, reads them three times and writes their sum alone.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._library.effects import EffectType
from torch.autograd import Function

from esper.kasmina.numbered import by_number

LIVE_FAULT, FOSSIL_FAULT = 1, 2
NOBODY = -1
"""In place of the number of a state."""


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


def new_mark(params_GN: Tensor) -> Tensor:
    """A mark of grafts, float32 ``[3, G]``. Its gradient counts values and gradients of the host that were not finite,
    and what grafts made of them or by themselves."""
    return torch.zeros(3, len(params_GN), device=params_GN.device)


class Blame(NamedTuple):
    """Whose faults are raised, and where.

    Args:
        seeds: int64 ``[G]``, first seed of each graft.
        bit: which fault to raise.
        state: number of the place's state (:mod:`esper.kasmina.numbered`), or ``NOBODY``.
    """

    seeds: Tensor
    bit: int
    state: int

    def on(self, is_faulty_G: Tensor, *, is_scaled: bool = False) -> None:
        """Raise the faults of grafts.

        Args:
            is_faulty_G: bool ``[G]``.
            is_scaled: whether what is not finite was multiplied by a scale of the loss. Then the scale may be at fault,
                unless it is 1 or less.
        """
        if self.state == NOBODY:
            return
        if torch.compiler.is_compiling():
            torch.ops.esper.blame(is_faulty_G, *self, is_scaled)
        else:
            _raise_faults(is_faulty_G, *self, is_scaled)

    def of_scale(self) -> Tensor | float:
        """What takes the place of a graft's gradients that are not finite: zero, or infinity where a scale of the loss
        may be at fault, so that the gradient scaler sees it, skips the step and lowers the scale. A compiled colony
        gives zero."""
        if self.state == NOBODY or torch.compiler.is_compiling():
            return 0.0
        scale: Tensor | None = by_number(self.state).loss_scale
        return 0.0 if scale is None else torch.where(scale > 1, torch.inf, 0.0)


@torch.no_grad()
def _raise_faults(is_faulty_G: Tensor, seeds: Tensor, bit: int, state: int, is_scaled: bool) -> None:
    found = by_number(state)
    if is_scaled and found.loss_scale is not None:
        is_faulty_G = is_faulty_G & (found.loss_scale <= 1)
    old = found.fault[seeds]
    found.fault[seeds] = torch.where(is_faulty_G, old | bit, old)


@torch.library.custom_op("esper::blame", mutates_args=())
def _blame(is_faulty_G: Tensor, seeds: Tensor, bit: int, state: int, is_scaled: bool) -> None:
    _raise_faults(is_faulty_G, seeds, bit, state, is_scaled)


_blame.register_fake(lambda is_faulty_G, seeds, bit, state, is_scaled: None)
_blame.register_effect(EffectType.ORDERED)


class Entry(Function):
    """Identity on ``(x, params_GN, mark)``; its backward drops every contribution of a faulty graft.

    Args of ``apply``:
        x: ``[G, ...]``, or ``[...]`` where all grafts read the same.
        params_GN: their parameters.
        mark: of the grafts.
        is_shared: whether all grafts read the same; ``x`` comes out as a view ``[G, ...]`` then.
        seeds, bit, state: of :class:`Blame`.
    """

    @staticmethod
    def forward(
        x: Tensor, params_GN: Tensor, mark: Tensor, is_shared: bool, seeds: Tensor, bit: int, state: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_G = x.expand(len(params_GN), *x.shape) if is_shared else x.view_as(x)
        return x_G, params_GN.view_as(params_GN), mark.view_as(mark)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, _, _, ctx.is_shared, seeds, ctx.bit, ctx.state = inputs
        ctx.save_for_backward(seeds)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(out for out, is_needed in zip(output[:2], ctx.needs_input_grad, strict=False) if not is_needed)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x_G, grad_GN, grad_mark = grads
        present = [grad for grad in (grad_x_G, grad_GN) if grad is not None]
        if grad_mark is None and not present:
            return (None,) * 7
        if grad_mark is None:  # what entered gives new channels alone
            grad_mark = new_mark(present[0])
        had_value_G, had_grad_G, is_faulty_G = (grad_mark > 0).unbind()
        for grad in present:
            is_faulty_G = is_faulty_G | ~finite_G(grad)
        (seeds,) = ctx.saved_tensors
        blame, is_hosts_G = Blame(seeds, ctx.bit, ctx.state), had_value_G | had_grad_G
        blame.on(is_faulty_G & ~is_hosts_G, is_scaled=True)
        grad_mark = torch.cat((grad_mark[:2], is_faulty_G.float().unsqueeze(0)))
        if grad_x_G is not None:
            is_sum = ctx.is_shared and len(grad_x_G) > 1
            grad_x_G = SumOfKept.apply(grad_x_G, ~is_faulty_G) if is_sum else select_G(~is_faulty_G, grad_x_G)
            if ctx.is_shared and not is_sum:
                grad_x_G = grad_x_G.squeeze(0)
        if grad_GN is not None:
            grad_GN = select_G(~is_faulty_G | is_hosts_G, grad_GN, blame.of_scale())
            grad_GN = select_G(~(is_faulty_G & had_value_G) | had_grad_G, grad_GN)
        return grad_x_G, grad_GN, grad_mark, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        params_GN: Tensor,
        mark: Tensor,
        is_shared: bool,
        *of: Any,
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """The samples of the transform are one more axis of the batch, behind G."""
        x_dim, params_dim, mark_dim = in_dims[:3]
        if x_dim is not None:
            x = x.movedim(x_dim, 0 if is_shared else 1)
        if params_dim is not None:
            params_GN = params_GN.movedim(params_dim, 1)
        if mark_dim is not None:
            mark = mark.movedim(mark_dim, 2)
        entered = Entry.apply(x, params_GN, mark, is_shared, *of)
        dims = (None if dim is None else new for dim, new in zip((x_dim, params_dim, mark_dim), (1, 1, 2), strict=True))
        return entered, tuple(dims)


class Exit(Function):
    """Identity on ``delta_G``; its backward notes whether what the host gave was finite.

    Args of ``apply``:
        delta_G: what the grafts add.
        mark: of the grafts, as it came out of the entry.
        may_blame_G: bool ``[G]``, false for grafts whose input came non-finite from the host. None blames nobody.
    """

    @staticmethod
    def forward(delta_G: Tensor, mark: Tensor, may_blame_G: Tensor | None) -> Tensor:
        return delta_G.view_as(delta_G)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None]:
        (grad_G,), (may_blame_G,) = grads, ctx.saved_tensors
        had_grad_G = ~finite_G(grad_G)
        none_G = torch.zeros_like(had_grad_G)
        had_value_G = none_G if may_blame_G is None else ~may_blame_G
        return grad_G, torch.stack((had_value_G, had_grad_G, none_G)).float(), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], delta_G: Tensor, mark: Tensor, may_blame_G: Tensor | None
    ) -> tuple[Tensor, int | None]:
        """As of the entry."""
        delta_dim, mark_dim = in_dims[:2]
        if mark_dim is not None:
            mark = mark.movedim(mark_dim, 2)
        if delta_dim is None:
            return Exit.apply(delta_G, mark, may_blame_G), None
        return Exit.apply(delta_G.movedim(delta_dim, 1), mark, may_blame_G), 1


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
