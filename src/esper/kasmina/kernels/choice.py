"""Which kernels are used: Triton's on a GPU that has it, else their twins in plain PyTorch.

``ESPER_KERNELS=reference`` or ``triton`` forces one; on a CPU Triton's run in its interpreter alone
(``TRITON_INTERPRET=1`` before torch is imported), which is for tests.
"""

import os
import warnings
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from esper.contracts.errors import ConfigError

VARIABLE = "ESPER_KERNELS"
KINDS = ("reference", "triton")


def uses_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernel is to work on a tensor.

    Raises:
        ConfigError: if ``ESPER_KERNELS`` is neither of its values, or asks for Triton where there is none.
    """
    return _uses_triton(tensor.device.type, os.environ.get(VARIABLE))


@cache
def _uses_triton(device: str, asked: str | None) -> bool:
    if asked not in (None, *KINDS):
        raise ConfigError(f"{VARIABLE} is {asked!r}; it can be {' or '.join(KINDS)}, or be left out.")
    has_triton = find_spec("triton") is not None
    if asked == "triton" and not has_triton:
        raise ConfigError(f"{VARIABLE} asks for triton, which is not installed: pip install triton, or unset it.")
    if asked == "triton" and device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"{VARIABLE} asks for triton, and the model is on {device}, where it runs in its interpreter alone: set "
            f"TRITON_INTERPRET=1 too, or unset {VARIABLE}."
        )
    if asked is not None:
        return asked == "triton"
    if device == "cuda" and not has_triton:
        warnings.warn("triton is not installed: plain PyTorch takes the place of Esper's kernels.", stacklevel=4)
    return device == "cuda" and has_triton
