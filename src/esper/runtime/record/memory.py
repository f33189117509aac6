"""How much memory the process holds."""

import os
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


def memory_bytes() -> int | None:
    """What is resident on the host, and what torch has allocated on the current GPU; None where no system tells it."""
    try:
        resident_pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    on_device = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
    return resident_pages * os.sysconf("SC_PAGE_SIZE") + on_device
