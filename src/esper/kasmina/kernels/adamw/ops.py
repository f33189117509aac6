"""AdamW for many small sets of parameters, by the kernel of the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from esper.kasmina.kernels.adamw import reference
from esper.kasmina.kernels.adamw.reference import Rows
from esper.kasmina.kernels.choice import uses_triton


def step_adamw(sets: Sequence[Rows], lr: float, weight_decay: float, skip: Tensor | None = None) -> None:
    """One step, in place, of the rows that move. Arguments as of the reference; the sets may be on many devices."""
    alike: dict[tuple[torch.device, torch.dtype], list[Rows]] = {}
    for rows in (rows for rows in sets if rows.params_SN.numel()):
        alike.setdefault((rows.params_SN.device, rows.params_SN.dtype), []).append(rows)
    for (device, _), some in alike.items():
        step = reference.step_adamw
        if uses_triton(some[0].params_SN):
            from esper.kasmina.kernels.adamw import triton

            step = triton.step_adamw
        step(some, lr, weight_decay, skip if skip is None else skip.to(device))
