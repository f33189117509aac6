"""Whether Triton can build a kernel here: it needs a C compiler with Python's headers, and a GPU that it knows."""

from subprocess import SubprocessError

import torch
import triton
import triton.language as tl
from triton.errors import TritonError


@triton.jit
def _write(x):  # type: ignore[no-untyped-def]
    tl.store(x, 1.0)


def failure(device: str) -> str | None:
    """What went wrong when a kernel of one line was launched on a device; None if nothing did."""
    try:
        _write[(1,)](torch.zeros(1, device=device))
    except (RuntimeError, OSError, SubprocessError, TritonError) as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
    return None
