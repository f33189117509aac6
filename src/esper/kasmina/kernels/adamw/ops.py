"""AdamW for many small sets of parameters, by the kernel of the device."""

from torch import Tensor

from esper.kasmina.kernels.adamw import reference
from esper.kasmina.kernels.choice import uses_triton


def step_adamw(
    params_SN: Tensor,
    grad_SN: Tensor,
    exp_avg_SN: Tensor,
    exp_avg_sq_SN: Tensor,
    updates_S: Tensor,
    moves_S: Tensor,
    lr: float | Tensor,
    weight_decay: float,
) -> None:
    """One step of the rows that move, in place; all others keep their bytes. Arguments as of the reference."""
    step = reference.step_adamw
    if uses_triton(params_SN):
        from esper.kasmina.kernels.adamw import triton

        step = triton.step_adamw
    step(params_SN, grad_SN, exp_avg_SN, exp_avg_sq_SN, updates_S, moves_S, lr, weight_decay)
