"""What counts as work: what torch's FlopCounterMode counts, and the CPU's attention kernel, which it leaves out."""

from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_COMPOSITE = DispatchKey.CompositeImplicitAutograd


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of all that is done inside, in forward and backward passes, and leaves every byte as it is.

    ``FlopCounterMode`` also follows modules. For that it hooks all of them, which a training step that is made for
    real, perhaps through ``torch.func``, can do without.

    Attributes:
        flops: so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _GEOMETRY:  # asked by tensor subclasses, which answer themselves
            return NotImplemented
        if not isinstance(func, OpOverload):  # of a higher order: what it does inside is not seen
            return func(*args, **kwargs)
        if _is_composite(func):  # arrives whole in inference mode
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        output = func(*args, **kwargs)
        formula = _ATTENTION.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=output)
        return output


def _is_composite(func: OpOverload[Any, Any]) -> bool:
    """Whether torch makes it of others. It is made in C++, also where ``decompose`` would in Python, and round anew."""
    is_counted = func._overloadpacket in flop_registry or func._overloadpacket in _ATTENTION
    return not is_counted and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)
    return flops


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    flops: int = sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)
    return flops


_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}

_GEOMETRY = frozenset(
    {
        torch.ops.aten.sym_is_contiguous.default,
        torch.ops.aten.is_contiguous.default,
        torch.ops.aten.is_contiguous.memory_format,
        torch.ops.aten.is_strides_like_format.default,
        torch.ops.aten.is_non_overlapping_and_dense.default,
        torch.ops.aten.size.default,
        torch.ops.aten.sym_size.default,
        torch.ops.aten.stride.default,
        torch.ops.aten.sym_stride.default,
        torch.ops.aten.storage_offset.default,
        torch.ops.aten.sym_storage_offset.default,
        torch.ops.aten.numel.default,
        torch.ops.aten.sym_numel.default,
        torch.ops.aten.dim.default,
        torch.ops.prim.layout.default,
    }
)
