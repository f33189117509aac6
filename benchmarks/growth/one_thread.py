"""Work in a process of its own takes one thread: there are as many processes as cores."""

from collections.abc import Callable
from typing import Any

import torch

from esper.evaluation.pool import Tell


def on_one_thread(work: Callable[[Any], Any], job: Any, tell: Tell) -> Any:
    """What a pool does with a job that tells nothing on its way."""
    torch.set_num_threads(1)
    return work(job)
