"""The state of a place's seeds: one tensor per column, one entry per seed."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from esper.kasmina.numbered import numbered

COLUMNS: dict[str, torch.dtype] = {
    "lifecycle": torch.int8,  # contracts.State
    "strategy": torch.int8,  # code of the grafting strategy; its name is in the arena
    "fault": torch.int8,  # bits raised by the guard: 1 live graft, 2 fossil
    "alpha": torch.float32,
    "progress": torch.float32,  # steps of the rise that are done; strategies run or pause this clock
    "steps_in_state": torch.int32,
    "epochs_in_state": torch.int32,
    "ramp_steps": torch.int32,  # steps of the rise, and of the blend-out
    "embargo_epochs": torch.int32,  # epochs left until the seed may germinate again
    "lifecycle_id": torch.int32,  # number of the running lifecycle, 0 for none
    "version": torch.int32,  # transitions so far
}


class KeepsDtype(nn.Module):
    """Buffers follow their module to another device, but never to another dtype.

    A bf16 alpha stalls at 0.5 and half-precision accumulators overflow, so ``model.half()`` must not reach them.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class SeedState(KeepsDtype):
    """Columns of ``COLUMNS``, each ``[num_seeds]``, all zero at birth: every seed DORMANT.

    They are written in ``kasmina.lifecycle`` and ``kasmina.grafting`` only; the guard raises ``fault``.

    Attributes:
        loss_scale: scalar, what a gradient scaler multiplies the loss by, if there is one.
    """

    loss_scale: Tensor | None = None

    lifecycle: Tensor
    strategy: Tensor
    fault: Tensor
    alpha: Tensor
    progress: Tensor
    steps_in_state: Tensor
    epochs_in_state: Tensor
    ramp_steps: Tensor
    embargo_epochs: Tensor
    lifecycle_id: Tensor
    version: Tensor

    def __init__(self, num_seeds: int) -> None:
        super().__init__()
        self.number = numbered(self)
        for name, dtype in COLUMNS.items():
            self.register_buffer(name, torch.zeros(num_seeds, dtype=dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.number = numbered(self)

    @property
    def num_seeds(self) -> int:
        """Seeds of the place."""
        return self.lifecycle.numel()
