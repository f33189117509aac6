"""Values that are read one step late, so that nobody waits for the device in the step that made them."""

from typing import Any

import torch
from torch import Tensor


class Late:
    """A copy on the host of a small tensor, on its way.

    On a GPU the copy is queued behind the work that makes the value. Reading it waits for that work only, while the
    next step's is queued already.

    Args:
        value: the tensor, on any device, or a number.
        after: what still makes it, as ``torch.distributed`` gives it, in a tensor that nobody else has; the steps that
            follow do not wait for that.
    """

    def __init__(self, value: Tensor | float, after: Any = None) -> None:
        self._arrived: torch.cuda.Event | None = None
        self._after: Any = None
        if not isinstance(value, Tensor):
            self._copy = torch.tensor(value, dtype=torch.float64)
        elif value.device.type == "cuda":
            self._copy = torch.empty_like(value, device="cpu", pin_memory=True)
            queue = torch.cuda.current_stream(value.device) if after is None else torch.cuda.Stream(value.device)
            with torch.cuda.stream(queue):
                if after is not None:
                    after.wait()
                    value.record_stream(queue)
                self._copy.copy_(value.detach(), non_blocking=True)
                self._arrived = torch.cuda.Event()
                self._arrived.record(queue)
        elif after is None:
            self._copy = value.detach().cpu().clone()
        else:
            self._copy, self._after = value.detach(), after

    def read(self) -> Tensor:
        """The value, on the host."""
        if self._after is not None:
            self._after.wait()
            self._after = None
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._copy
