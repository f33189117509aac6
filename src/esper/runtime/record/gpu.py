"""How busy a GPU is."""

from functools import cache

import torch


def utilisation(device: torch.device) -> float | None:
    """Share of the last moment in which a kernel ran on the device, in [0, 1]; None if it cannot be told.

    torch asks NVIDIA's management library, which is in the extra ``metrics``, or AMD's.
    """
    try:
        return torch.cuda.utilization(device) / 100.0
    except _troubles():
        return None


@cache
def _troubles() -> tuple[type[Exception], ...]:
    """No library, no driver, a device that does not tell it."""
    try:
        from pynvml import NVMLError
    except ImportError:
        return ModuleNotFoundError, RuntimeError
    return ModuleNotFoundError, RuntimeError, NVMLError
