"""Windows of a stretch of text: in a row to learn from, and few of them, evenly spread, to judge by."""

import torch
from torch import Tensor

from esper.tasks.task import Samples

LEAST_JUDGED = 20
"""So many held-out and test windows are needed at least."""

MAX_JUDGED = 1_000
NEIGHBOURS = 4


def windows(codes: Tensor, length: int) -> Samples:
    """Windows in a row, each with what comes one token later; both are views of ``codes``."""
    count = (len(codes) - 1) // length
    x, y = (codes[start : start + count * length].view(count, length) for start in (0, 1))
    return Samples(x, y)


def spread(samples: Samples) -> tuple[Samples, Tensor]:
    """At most ``MAX_JUDGED`` windows, as groups of neighbours evenly spread, and the number of each one's group."""
    count = len(samples.y)
    size = max(1, min(NEIGHBOURS, count // 100))
    groups = count // size
    kept = min(groups, MAX_JUDGED // size)
    first = torch.arange(kept) * groups // kept * size
    rows = (first[:, None] + torch.arange(size)).flatten()
    return Samples(samples.x[rows].long(), samples.y[rows].long()), torch.arange(kept).repeat_interleave(size)
