"""What counts as work: what torch's FlopCounterMode counts, and the CPU's attention kernel, which it leaves out."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

_Shape = tuple[int, ...]


def flop_counter() -> FlopCounterMode:
    """A counter to be entered; it prints nothing."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


def _attention(query: _Shape, key: _Shape, value: _Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(query, key, value)
    return flops


def _attention_backward(
    grad: _Shape, query: _Shape, key: _Shape, value: _Shape, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    flops: int = sdpa_backward_flop_count(grad, query, key, value)
    return flops


_FORMULAS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
