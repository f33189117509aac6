"""Whether a gradient is nobody else's, so that it may be written over.

Autograd hands one tensor to several nodes, as of a sum to both of its terms; hooks and callers keep gradients. So the
references to a gradient, its memory and its Python object are counted. They are as many as of a gradient that surely
nobody else has, or somebody has it. PyTorch's engine asks likewise before it adds gradients in place
(torch/csrc/autograd/input_buffer.cpp).
"""

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import _disable_current_modes


def is_nobody_elses(grads: tuple[Any, ...]) -> bool:
    """Whether only the node that got a gradient has it; to be asked first in ``backward(ctx, *grads)``.

    Args:
        grads: one gradient, as torch handed it over.
    """
    return _references(grads) == fewest_references(is_view=grads[0]._is_view()) and is_whole(grads[0])


def is_whole(x: Tensor) -> bool:
    """Whether a tensor is all that its memory holds, each number once."""
    is_all = x.untyped_storage().nbytes() == x.numel() * x.itemsize
    return type(x) is Tensor and is_all and 0 not in x.stride()


@cache
def fewest_references(*, is_view: bool = False) -> tuple[int, ...]:
    """To a gradient, its Python object and its memory; found by a backward pass, so better outside of a model's.

    Args:
        is_view: of a gradient that is a view of a tensor, and to that.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        x = torch.ones(2, 2, requires_grad=True)
        y = _Probe.apply(x)
        torch.autograd.grad((2 * (y.mT if is_view else y)).sum(), x)
    return _Probe.found


def _references(grads: tuple[Any, ...]) -> tuple[int, ...]:
    of_storage = torch._C._storage_Use_Count(grads[0].untyped_storage()._cdata)
    found = sys.getrefcount(grads[0]), grads[0]._use_count(), of_storage
    base = grads[0]._base
    return found if base is None else (*found, sys.getrefcount(base), base._use_count())


class _Probe(Function):
    found: tuple[int, ...] = ()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        _Probe.found = _references(grads)
        return grads
