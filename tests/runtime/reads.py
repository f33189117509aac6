"""Counts how often a program waits for a tensor's values, as it would for a device."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__int__, Tensor.__float__),
    *(Tensor.__index__, Tensor.nonzero, Tensor.unique, torch.unique, torch.nonzero),
}


class Reads(TorchFunctionMode):
    """Counts while entered: what gives Python a value or a copy on the host, or needs one for a shape.

    A tensor that such a copy has made is on the host, and so is what is computed from it: reading that counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.where: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_of_host = any(getattr(one, "is_of_host", False) for one in _tensors(args))
        if func in READS and not is_of_host:
            self.count += 1
            self.where.append(func.__name__)
        result = func(*args, **(kwargs or {}))
        if func is Tensor.cpu:
            result = result.detach()  # on the CPU it would be the tensor itself
        if is_of_host or func is Tensor.cpu:
            for one in _tensors(result if isinstance(result, list | tuple) else [result]):
                one.is_of_host = True
        return result


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found
