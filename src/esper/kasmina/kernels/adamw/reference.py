"""AdamW for many small sets of parameters at once, each with its own count of steps.

Maths: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
"""

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


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
    """One step of the rows that move, in place; all others keep their bytes.

    Args:
        params_SN: ``[S, N]``, of any floating dtype.
        grad_SN: float32 ``[S, N]``.
        exp_avg_SN: float32 ``[S, N]``, first moments.
        exp_avg_sq_SN: float32 ``[S, N]``, second moments.
        updates_S: float32 ``[S]``, steps so far.
        moves_S: bool ``[S]``.
        lr: learning rate, or one of each row, float32 ``[S, 1]``.
        weight_decay: decoupled.
    """
    updates_S += moves_S
    exp_avg = exp_avg_SN.lerp(grad_SN, 1 - BETA_1)
    exp_avg_sq = exp_avg_sq_SN * BETA_2 + grad_SN.square() * (1 - BETA_2)
    count_S1 = updates_S.clamp(min=1).unsqueeze(1)
    denominator = (exp_avg_sq / (1 - BETA_2**count_S1)).sqrt() + EPSILON
    stepped = params_SN.float() * (1 - lr * weight_decay) - lr * (exp_avg / (1 - BETA_1**count_S1)) / denominator
    moves_S1 = moves_S.unsqueeze(1)
    params_SN.copy_(torch.where(moves_S1, stepped.to(params_SN.dtype), params_SN))
    exp_avg_SN.copy_(torch.where(moves_S1, exp_avg, exp_avg_SN))
    exp_avg_sq_SN.copy_(torch.where(moves_S1, exp_avg_sq, exp_avg_sq_SN))
