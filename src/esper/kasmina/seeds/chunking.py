"""Channels to seeds: which contiguous output channels each seed owns."""

import torch
from torch import Tensor

from esper.contracts.errors import ConfigError


def chunk_bounds(num_channels: int, num_seeds: int) -> Tensor:
    """First channel of every seed's chunk, and the end.

    Args:
        num_channels: channels of the host layer, at least ``num_seeds``.
        num_seeds: seeds of the layer; chunk sizes differ by at most one.

    Returns:
        int64 ``[num_seeds + 1]``, rising; seed ``s`` owns channels ``[out[s], out[s + 1])``.

    Raises:
        ConfigError: if ``num_seeds`` is below 1 or exceeds ``num_channels``.
    """
    if type(num_seeds) is not int or not 1 <= num_seeds <= num_channels:
        raise ConfigError(f"A layer of {num_channels} channels can carry 1 to {num_channels} seeds, not {num_seeds!r}.")
    return torch.arange(num_seeds + 1, dtype=torch.int64, device="cpu") * num_channels // num_seeds
