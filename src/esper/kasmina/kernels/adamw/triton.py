"""AdamW for many small sets of parameters, in Triton: one launch for all of them, each number read and written once."""

import math

import triton
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.adamw import reference

BETA_1, BETA_2 = tl.constexpr(reference.BETA_1), tl.constexpr(reference.BETA_2)
EPSILON = tl.constexpr(reference.EPSILON)
LOG_BETA_1, LOG_BETA_2 = tl.constexpr(math.log(reference.BETA_1)), tl.constexpr(math.log(reference.BETA_2))
BLOCK = 1024


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
    """As of the reference."""
    updates_S += moves_S
    slots, size = params_SN.shape
    rates = lr if isinstance(lr, Tensor) else None
    _step[(slots, triton.cdiv(size, BLOCK))](
        params_SN,
        params_SN.stride(0),
        grad_SN,
        grad_SN.stride(0),
        exp_avg_SN,
        exp_avg_SN.stride(0),
        exp_avg_sq_SN,
        exp_avg_sq_SN.stride(0),
        updates_S,
        moves_S,
        rates,
        0.0 if isinstance(lr, Tensor) else lr,
        weight_decay,
        size,
        HAS_RATES=rates is not None,
        BLOCK=BLOCK,
    )


@triton.jit
def _lost(x):  # type: ignore[no-untyped-def]
    """``1 - exp(x)``; near zero by its series, since the difference would lose four digits there."""
    series = -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))))
    return tl.where(x > -0.1, series, 1.0 - tl.exp(x))


@triton.jit
def _step(  # type: ignore[no-untyped-def]
    weights,
    weights_stride,
    grads,
    grads_stride,
    exp_avgs,
    exp_avgs_stride,
    exp_avg_sqs,
    exp_avg_sqs_stride,
    updates,
    moves,
    rates,
    lr,
    weight_decay,
    size,
    HAS_RATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    if tl.load(moves + slot):
        n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = n < size
        if HAS_RATES:
            lr = tl.load(rates + slot)
        count = tl.load(updates + slot)
        correction_1, correction_2 = _lost(count * LOG_BETA_1), _lost(count * LOG_BETA_2)
        param_at = weights + slot * weights_stride + n
        exp_avg_at = exp_avgs + slot * exp_avgs_stride + n
        exp_avg_sq_at = exp_avg_sqs + slot * exp_avg_sqs_stride + n
        param = tl.load(param_at, mask=inside)
        grad = tl.load(grads + slot * grads_stride + n, mask=inside)
        exp_avg = tl.load(exp_avg_at, mask=inside)
        exp_avg += (grad - exp_avg) * (1.0 - BETA_1)
        exp_avg_sq = tl.load(exp_avg_sq_at, mask=inside) * BETA_2 + grad * grad * (1.0 - BETA_2)
        denominator = tl.sqrt(exp_avg_sq / correction_2) + EPSILON
        stepped = param.to(tl.float32) * (1.0 - lr * weight_decay) - lr * (exp_avg / correction_1) / denominator
        tl.store(param_at, stepped.to(param.dtype), mask=inside)
        tl.store(exp_avg_at, exp_avg, mask=inside)
        tl.store(exp_avg_sq_at, exp_avg_sq, mask=inside)
