"""AdamW for many small sets of parameters, in Triton: two launches for all sets of all places.

The first sees which gradients are finite, the second steps. A table tells where everything lies, since the gradients
lie elsewhere in every step.
"""

# S rows, N parameters of a row

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.adamw import reference
from esper.kasmina.kernels.adamw.reference import Rows

BETA_1, BETA_2 = tl.constexpr(reference.BETA_1), tl.constexpr(reference.BETA_2)
EPSILON = tl.constexpr(reference.EPSILON)
LOG_BETA_1, LOG_BETA_2 = tl.constexpr(math.log(reference.BETA_1)), tl.constexpr(math.log(reference.BETA_2))
FIRST_TRAINS, SECOND_TRAINS = tl.constexpr(reference.FIRST_TRAINS), tl.constexpr(reference.SECOND_TRAINS)
INFINITY = tl.constexpr(math.inf)
BLOCK = 1024
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

START, SIZE = tl.constexpr(0), tl.constexpr(1)
PARAMS, GRAD, EXP_AVG, EXP_AVG_SQ, UPDATES = (tl.constexpr(2 + column) for column in range(5))
MOVES, SEEDS, LIFECYCLE, RATES = (tl.constexpr(7 + column) for column in range(4))
COLUMNS = tl.constexpr(11)
"""Columns of the table: a set's first row, the size of its rows, and addresses; 0 for what it does not have."""


def step_adamw(sets: Sequence[Rows], lr: float, weight_decay: float, skip: Tensor | None = None) -> None:
    """As of the reference; all sets are on one device, and their parameters of one dtype."""
    kept, columns, total = [one.grad_SN.contiguous() for one in sets], [], 0
    for rows, grad_SN in zip(sets, kept, strict=True):
        given = (rows.params_SN, grad_SN, *rows[2:])
        addresses = [0 if one is None else one.data_ptr() for one in given]
        columns.append([total, grad_SN.shape[1], *addresses])
        total += len(grad_SN)
    params = sets[0].params_SN
    blocks = max(triton.cdiv(grad_SN.shape[1], BLOCK) for grad_SN in kept)
    table = torch.tensor(columns, pin_memory=params.is_cuda).to(params.device, non_blocking=True)
    are_finite = torch.empty(total, blocks, dtype=torch.int32, device=params.device)
    before = torch.empty(total, dtype=torch.float32, device=params.device)
    about = {"SETS": triton.next_power_of_2(len(sets)), "DTYPE": DTYPES[params.dtype], "BLOCK": BLOCK}
    with torch.cuda.device_of(params):
        _look[(total, blocks)](table, len(sets), are_finite, before, blocks, **about)
        _step[(total, blocks)](
            table,
            len(sets),
            are_finite,
            before,
            blocks,
            skip,
            lr,
            weight_decay,
            BLOCKS=triton.next_power_of_2(blocks),
            **about,
        )


@triton.jit
def _lost(x):  # type: ignore[no-untyped-def]
    """``1 - exp(x)``; near zero by its series, since the difference would lose four digits there."""
    series = -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))))
    return tl.where(x > -0.1, series, 1.0 - tl.exp(x))


@triton.jit
def _set_of(table, sets, row, SETS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the table tells of a row's set, and the row's number in there."""
    s = tl.arange(0, SETS)
    starts = tl.load(table + s * COLUMNS + START, mask=s < sets, other=1 << 62)
    at = table + (tl.sum((starts <= row).to(tl.int64)) - 1) * COLUMNS
    return at, row - tl.load(at + START)


@triton.jit
def _look(  # type: ignore[no-untyped-def]
    table, sets, are_finite, before, blocks, SETS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at, slot = _set_of(table, sets, row, SETS)
    size, n = tl.load(at + SIZE), block * BLOCK + tl.arange(0, BLOCK)
    grad = tl.load(tl.load(at + GRAD).to(tl.pointer_type(DTYPE)) + slot * size + n, mask=n < size, other=0.0)
    is_finite = tl.abs(grad.to(tl.float32)) < INFINITY
    tl.store(are_finite + row * blocks + block, tl.min(is_finite.to(tl.int32)))
    if block == 0:
        tl.store(before + row, tl.load(tl.load(at + UPDATES).to(tl.pointer_type(tl.float32)) + slot))


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    table,
    sets,
    are_finite,
    before,
    blocks,
    skip,
    lr,
    weight_decay,
    SETS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at, slot = _set_of(table, sets, row, SETS)
    b = tl.arange(0, BLOCKS)
    moves = tl.min(tl.load(are_finite + row * blocks + b, mask=b < blocks, other=1)) != 0
    moves &= tl.load(tl.load(at + MOVES).to(tl.pointer_type(tl.int8)) + slot) != 0
    seeds = tl.load(at + SEEDS)
    if seeds != 0:
        seed = tl.load(seeds.to(tl.pointer_type(tl.int64)) + slot)
        state = tl.load(tl.load(at + LIFECYCLE).to(tl.pointer_type(tl.int8)) + seed)
        moves &= (state == FIRST_TRAINS) | (state == SECOND_TRAINS)
    if skip is not None:
        moves &= tl.load(skip) == 0
    if moves:
        size, n = tl.load(at + SIZE), block * BLOCK + tl.arange(0, BLOCK)
        inside, offset = n < size, slot * size + n
        rates = tl.load(at + RATES)
        if rates != 0:
            lr *= tl.load(rates.to(tl.pointer_type(tl.float32)) + slot)
        count = tl.load(before + row) + 1.0
        if block == 0:
            tl.store(tl.load(at + UPDATES).to(tl.pointer_type(tl.float32)) + slot, count)
        correction_1, correction_2 = _lost(count * LOG_BETA_1), _lost(count * LOG_BETA_2)
        param_at = tl.load(at + PARAMS).to(tl.pointer_type(DTYPE)) + offset
        exp_avg_at = tl.load(at + EXP_AVG).to(tl.pointer_type(tl.float32)) + offset
        exp_avg_sq_at = tl.load(at + EXP_AVG_SQ).to(tl.pointer_type(tl.float32)) + offset
        param = tl.load(param_at, mask=inside)
        grad = tl.load(tl.load(at + GRAD).to(tl.pointer_type(DTYPE)) + offset, mask=inside).to(tl.float32)
        exp_avg = tl.load(exp_avg_at, mask=inside)
        exp_avg += (grad - exp_avg) * (1.0 - BETA_1)
        exp_avg_sq = tl.load(exp_avg_sq_at, mask=inside) * BETA_2 + grad * grad * (1.0 - BETA_2)
        denominator = tl.sqrt(exp_avg_sq / correction_2) + EPSILON
        stepped = param.to(tl.float32) * (1.0 - lr * weight_decay) - lr * (exp_avg / correction_1) / denominator
        tl.store(param_at, stepped.to(DTYPE), mask=inside)
        tl.store(exp_avg_at, exp_avg, mask=inside)
        tl.store(exp_avg_sq_at, exp_avg_sq, mask=inside)
