"""Small tensors of many places, on the host after one transfer: each by itself would wait for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def read_together(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Copies on the host of groups of tensors, one transfer for every device that they are on.

    Args:
        groups: tensors of what float32 holds: sums that are float32 themselves, and whole numbers below 2**24, as state
            codes, versions and numbers of lifecycles are.

    Returns:
        The same groups, float32.
    """
    tensors = [tensor for group in groups for tensor in group]
    arrived: dict[int, Tensor] = {}
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        here = [(index, tensor) for index, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensor.detach().float().flatten() for _, tensor in here]).cpu()
        parts = flat.split([tensor.numel() for _, tensor in here])
        arrived |= {index: part.view(tensor.shape) for (index, tensor), part in zip(here, parts, strict=True)}
    copies = iter(arrived[index] for index in range(len(tensors)))
    return [[next(copies) for _ in group] for group in groups]
