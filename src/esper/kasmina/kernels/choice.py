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
    if asked == "reference" or (asked is None and device != "cuda"):
        return False
    why = _failure(device)
    if asked == "triton" and why is not None:
        raise ConfigError(f"{VARIABLE} asks for triton, and {why}. Mend that, or unset {VARIABLE}.")
    if why is not None:
        warnings.warn(f"Esper's kernels are not used, for {why}. Plain PyTorch takes their place.", stacklevel=4)
    return why is None


def _failure(device: str) -> str | None:
    """Why Triton's kernels cannot run on a device, as the end of a sentence; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device == "cuda":
        from esper.kasmina.kernels import probe

        failure = probe.failure(device)
        return None if failure is None else f"triton cannot build a kernel here ({failure})"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return f"the model is on {device}, where it runs in its interpreter alone (TRITON_INTERPRET=1)"
    return None
