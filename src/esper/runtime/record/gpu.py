"""How busy a GPU is: the only place that knows NVIDIA's management library."""

from functools import cache
from typing import Any

import torch


def utilisation(device: torch.device) -> float | None:
    """Share of the last moment in which a kernel ran on the device, in [0, 1]; None if it cannot be told.

    Needs the extra ``metrics``. The library is asked once whether it knows the device.
    """
    handle = _handle(device.index if device.index is not None else torch.cuda.current_device())
    if handle is None:
        return None
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100.0
    except pynvml.NVMLError:
        return None


@cache
def _handle(index: int) -> Any:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    except pynvml.NVMLError:
        return None
