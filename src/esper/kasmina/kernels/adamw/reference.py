"""AdamW for many small sets of parameters at once, each with its own count of steps.

Maths: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
"""

# S rows, N parameters of a row, T seeds

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esper.contracts.lifecycle import TRAINABLE

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
FIRST_TRAINS, SECOND_TRAINS = sorted(map(int, TRAINABLE))  # plain numbers, which a compiler can compare with a tensor


class Rows(NamedTuple):
    """Sets of parameters of one size, a row for each. Every tensor is contiguous, but for the gradient.

    Args:
        params_SN: ``[S, N]``, of any floating dtype.
        grad_SN: ``[S, N]``, of the same dtype.
        exp_avg_SN: float32 ``[S, N]``, first moments.
        exp_avg_sq_SN: float32 ``[S, N]``, second moments.
        updates_S: float32 ``[S]``, steps so far.
        moves_S: bool ``[S]``, which may move.
        seeds_S: int64 ``[S]``, the seed of each, if it moves only while that trains.
        lifecycle_T: int8 ``[T]``, state of every seed.
        rates_S1: float32 ``[S, 1]``, multiples of the learning rate, if they differ.
    """

    params_SN: Tensor
    grad_SN: Tensor
    exp_avg_SN: Tensor
    exp_avg_sq_SN: Tensor
    updates_S: Tensor
    moves_S: Tensor
    seeds_S: Tensor | None = None
    lifecycle_T: Tensor | None = None
    rates_S1: Tensor | None = None


def trainable(lifecycle_T: Tensor) -> Tensor:
    """Bool ``[T]``: whether a graft of the seed moves now."""
    return (lifecycle_T == FIRST_TRAINS) | (lifecycle_T == SECOND_TRAINS)


def step_adamw(sets: Sequence[Rows], lr: float, weight_decay: float, skip: Tensor | None = None) -> None:
    """One step, in place, of the rows that move: all others keep their bytes, as do those whose gradient is not finite.

    Args:
        sets: the rows.
        lr: learning rate.
        weight_decay: decoupled.
        skip: bool scalar tensor; true where nothing moves.
    """
    for rows in sets:
        _step(rows, lr, weight_decay, skip)


def _step(rows: Rows, lr: float, weight_decay: float, skip: Tensor | None) -> None:
    params_SN, grad_SN = rows.params_SN, rows.grad_SN.float()
    moves_S = rows.moves_S & torch.isfinite(grad_SN).all(1)
    if rows.seeds_S is not None and rows.lifecycle_T is not None:
        moves_S &= trainable(rows.lifecycle_T)[rows.seeds_S]
    if skip is not None:
        moves_S &= ~skip
    rates = lr if rows.rates_S1 is None else rows.rates_S1 * lr
    rows.updates_S.add_(moves_S)
    exp_avg = rows.exp_avg_SN.lerp(grad_SN, 1 - BETA_1)
    exp_avg_sq = rows.exp_avg_sq_SN * BETA_2 + grad_SN.square() * (1 - BETA_2)
    count_S1 = rows.updates_S.clamp(min=1).unsqueeze(1)
    denominator = (exp_avg_sq / (1 - BETA_2**count_S1)).sqrt() + EPSILON
    stepped = params_SN.float() * (1 - rates * weight_decay) - rates * (exp_avg / (1 - BETA_1**count_S1)) / denominator
    moves_S1 = moves_S.unsqueeze(1)
    params_SN.copy_(torch.where(moves_S1, stepped.to(params_SN.dtype), params_SN))
    rows.exp_avg_SN.copy_(torch.where(moves_S1, exp_avg, rows.exp_avg_SN))
    rows.exp_avg_sq_SN.copy_(torch.where(moves_S1, exp_avg_sq, rows.exp_avg_sq_SN))
