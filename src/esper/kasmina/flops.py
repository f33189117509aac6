"""What counts as work: what torch's FlopCounterMode counts, and the CPU's attention kernel, which it leaves out.

``FlopCounterMode`` sees operations by a mode of Python's dispatcher. While one is on, torch differentiates some of them
by other formulas (SiLU, for one), which round otherwise, and a step that is made for real must not. So those few
operations that cost FLOPs have a kernel here at a dispatch key of their own, which passes them on; it is only called
while a counter has switched the key on, and all other operations never come here.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_KEY = torch._C._dispatch_key_parse("TESTING_ONLY_GenericMode")
"""Above all others, and used by nothing in torch but its own tests of such keys."""

_ACTIVE: dict[int, list["FlopCounter"]] = {}
"""Counters that are on, by thread."""


class FlopCounter:
    """Adds up the FLOPs of all that is done inside, in forward and backward passes, and changes no byte of it.

    Attributes:
        flops: so far.
    """

    def __init__(self) -> None:
        self.flops = 0

    def __enter__(self) -> Self:
        _ACTIVE.setdefault(threading.get_ident(), []).append(self)
        self._guard = torch._C._IncludeDispatchKeyGuard(_KEY)
        self._guard.__enter__()
        return self

    def __exit__(self, *args: object) -> None:
        self._guard.__exit__(*args)
        thread = threading.get_ident()
        _ACTIVE[thread].remove(self)
        if not _ACTIVE[thread]:
            del _ACTIVE[thread]


def _counted(operation: OpOverload[Any, Any], formula: Callable[..., int], keys: Any, *args: Any, **kwargs: Any) -> Any:
    """Pass an operation on, and add what it costs; not what it is made of inside."""
    below = keys.remove(_KEY)
    if torch._C._functorch.peek_interpreter_stack() is not None:  # it comes once more for what it really computes
        return operation.redispatch(below, *args, **kwargs)
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
        output = operation.redispatch(below, *args, **kwargs)
        flops = formula(*args, **kwargs, out_val=output)
    # backward passes on a device have a thread of their own
    own = _ACTIVE.get(threading.get_ident())
    for counter in own or [one for counters in list(_ACTIVE.values()) for one in counters]:
        counter.flops += flops
    return output


def _attention(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    flops: int = sdpa_flop_count(query.shape, key.shape, value.shape)
    return flops


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    flops: int = sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)
    return flops


_FORMULAS: dict[Any, Any] = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def _register(name: str) -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    for packet, formula in _FORMULAS.items():
        if isinstance(packet, OpOverloadPacket):  # those of a higher order have no kernels
            for overload in packet.overloads():
                operation = getattr(packet, overload)
                library.impl(operation, partial(_counted, operation, formula), name, with_keyset=True)
    return library


_OTHERS = torch.library.Library("_", "IMPL")
_OTHERS.fallback(torch.library.fallthrough_kernel, "TESTING_ONLY_GenericMode")
_KERNELS = _register("TESTING_ONLY_GenericMode")
