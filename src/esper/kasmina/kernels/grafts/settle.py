"""What a graft did that is not finite is taken back, in Triton: nearly always there is nothing, and one launch sees it.

One program for each graft looks at what the others noted. Only where there is a fault it goes over the graft's rows,
to see whether the host gave what is not finite, and to write back what the host had.
"""

# M rows, K channels of a graft, N parameters of one graft

import triton
import triton.language as tl

from esper.contracts.lifecycle import TRAINABLE
from esper.kasmina.kernels.grafts.tile import COUNTS, copy_again, not_finite, row_at

UNSOUND, HOSTS, TRAINS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
"""What was found of a graft: it gave what is not finite; it got such from the host; its parameters move."""

_FIRST_TRAINS, _SECOND_TRAINS = (tl.constexpr(int(state)) for state in sorted(TRAINABLE))


@triton.jit
def _is_noted(flags, g, grafts, notes, NOTES: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, NOTES)
    return tl.max(tl.load(flags + n * grafts + g, mask=n < notes, other=0))


@triton.jit
def _is_hosts(x, stride, channel, rows, K, FLAT: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether any value of a graft's channels is not finite."""
    k, is_bad = tl.arange(0, CHANNELS), 0
    for t in range(rows.batch * rows.blocks):
        at_M, is_row_M = row_at(t, rows, stride, FLAT, ROWS)
        mask = is_row_M[:, None] & (k < K)[None, :]
        values = tl.load(x + at_M[:, None] + (channel + k)[None, :] * stride[2], mask=mask, other=0.0).to(tl.float32)
        is_bad = tl.maximum(is_bad, tl.max(tl.max(not_finite(values).to(tl.int32), 1), 0))
    return is_bad


@triton.jit
def _write_back(  # type: ignore[no-untyped-def]
    before,
    before_stride,
    origin,
    after,
    after_stride,
    channel,
    rows,
    K,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    k = tl.arange(0, CHANNELS)
    copy_again(before, before_stride, origin + k, after, after_stride, channel + k, k < K, 0, 1, rows, FLAT, ROWS)


@triton.jit
def _blame(fault, seeds, g, bit):  # type: ignore[no-untyped-def]
    at = fault + tl.load(seeds + g)
    tl.store(at, tl.load(at) | bit)


@triton.jit(do_not_specialize=COUNTS)
def settle_forward(  # type: ignore[no-untyped-def]
    y,
    y_stride,
    out,
    out_stride,
    first,
    seeds,
    alpha,
    lifecycle,
    fault,
    flags,
    found,
    shares,
    x_is_finite,
    rows,
    grafts,
    notes,
    WAS_PUT_ASIDE: tl.constexpr,
    K: tl.constexpr,
    BIT: tl.constexpr,
    NOTES: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    g = tl.program_id(0)
    seed, share = tl.load(seeds + g), 1.0
    told = (seed * 0).to(tl.int32)
    if alpha is not None:
        state, share = tl.load(lifecycle + seed), tl.load(alpha + seed)
        told = tl.where((state == _FIRST_TRAINS) | (state == _SECOND_TRAINS), TRAINS, 0)
    if _is_noted(flags, g, grafts, notes, NOTES) != 0:
        channel = tl.load(first + g)
        origin = g * K if WAS_PUT_ASIDE else channel
        is_hosts = _is_hosts(y, y_stride, origin, rows, K, FLAT, ROWS, CHANNELS)
        if x_is_finite is not None:
            is_hosts = tl.where(tl.load(x_is_finite) != 0, is_hosts, 1)
        _write_back(y, y_stride, origin, out, out_stride, channel, rows, K, FLAT, ROWS, CHANNELS)
        told, share = told | UNSOUND | tl.where(is_hosts != 0, HOSTS, 0), 0.0
        if fault is not None:  # noqa: SIM102 - decided when this is compiled
            if is_hosts == 0:
                _blame(fault, seeds, g, BIT)
    tl.store(found + g, told)
    tl.store(shares + g, share)


@triton.jit(do_not_specialize=COUNTS)
def settle_backward(  # type: ignore[no-untyped-def]
    grad,
    grad_stride,
    grad_y,
    grad_y_stride,
    first,
    seeds,
    fault,
    flags,
    found,
    grads,
    grads_stride,
    slots,
    rows,
    grafts,
    notes,
    size,
    scale,
    keeps,
    SKIPPED: tl.constexpr,
    WAS_PUT_ASIDE: tl.constexpr,
    K: tl.constexpr,
    BIT: tl.constexpr,
    NOTES: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    g = tl.program_id(0)
    is_kept = 1
    if _is_noted(flags, g, grafts, notes, NOTES) != 0:
        channel = tl.load(first + g)
        origin = g * K if WAS_PUT_ASIDE else channel
        had_value = tl.load(found + g) & HOSTS
        had_grad = _is_hosts(grad, grad_stride, origin, rows, K, FLAT, ROWS, CHANNELS)
        is_kept = 0
        if grad_y is not None:
            _write_back(grad, grad_stride, origin, grad_y, grad_y_stride, channel, rows, K, FLAT, ROWS, CHANNELS)
        instead, bit = 0.0, BIT
        if scale is not None:  # it may be at fault, and a gradient scaler is to see it
            is_over = tl.load(scale) > 1.0
            instead = tl.where(is_over & (had_value == 0), float("inf"), 0.0)
            bit = tl.where(is_over, 0, BIT)
        if grads is not None:  # noqa: SIM102 - decided when this is compiled
            if had_grad == 0:
                for start in range(0, size, BLOCK):
                    n = start + tl.arange(0, BLOCK)
                    at = grads + tl.load(slots + g) * grads_stride + SKIPPED + n
                    filled = tl.zeros((BLOCK,), tl.float32) + instead
                    tl.store(at, filled.to(grads.dtype.element_ty), mask=n < size)
        if fault is not None:  # noqa: SIM102 - decided when this is compiled
            if (had_value | had_grad) == 0:
                _blame(fault, seeds, g, bit)
    if keeps is not None:
        tl.store(keeps + g, is_kept)
