"""What seeds sense, by the kernel of the device."""

from types import ModuleType

from torch import Tensor

from esper.kasmina.kernels.choice import uses_triton
from esper.kasmina.kernels.telemetry import reference


def kernel_for(tensor: Tensor) -> ModuleType:
    """Where the functions ``look`` and ``feel`` are that work on a tensor."""
    if not uses_triton(tensor):
        return reference
    from esper.kasmina.kernels.telemetry import triton

    return triton
