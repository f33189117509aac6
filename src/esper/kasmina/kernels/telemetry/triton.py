"""What seeds sense, in Triton: two launches for a look at an output, one for a look at its gradient; torch needs some
thirty for both.

The first gives the squared norm of each sampled vector, which tells whether it counts; the second the sums of a block
of channels. No two programs write the same number, so the same vectors give the same bytes. Whether it is a pass's turn
may be asked on the device: a CUDA graph repeats its launches, and nobody in Python is there to decide.
"""

# N sampled vectors, B samples, P positions, C channels, R rows of a tile

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.telemetry.reference import GOLDEN_RATIO, LARGEST_NORM, Spread, with_positions

LARGEST_SQUARE = tl.constexpr(LARGEST_NORM**2)
RATIO = tl.constexpr(GOLDEN_RATIO)
NORM_BLOCK, CHANNEL_BLOCK, ROWS = 1024, 128, 32


class Sampling(NamedTuple):
    """Strides of ``[B, P, C]``, and what :class:`~esper.kasmina.kernels.telemetry.reference.Spread` tells of it."""

    stride_B: int
    stride_P: int
    stride_C: int
    channels: int
    every: int
    stretches: int
    offsets: int
    length: int
    step: int
    vectors: int


def look(
    y: Tensor,
    axis: int,
    rows: int,
    threshold: float | None,
    sums: Tensor,
    pivot: Tensor,
    turn: Tensor | None = None,
    share: float = 1.0,
) -> None:
    """As of the reference.

    Args:
        y, axis, rows, threshold, sums, pivot: as there.
        turn: int64 ``[1]``, in place: passes so far. With it only a share of them is looked at.
        share: of the passes.
    """
    y_BPC, at = _sampling(y, axis, rows)
    squares_N, about = _squared_norms(y_BPC, at, sums, turn, share)
    _look[(triton.cdiv(at.channels, CHANNEL_BLOCK),)](
        y_BPC,
        at,
        squares_N,
        about,
        sums,
        pivot,
        turn,
        0.0 if threshold is None else threshold,
        HAS_THRESHOLD=threshold is not None,
        HAS_TURN=turn is not None,
        ROWS=ROWS,
        BLOCK=CHANNEL_BLOCK,
    )


def feel(
    gradient: Tensor,
    axis: int,
    rows: int,
    squares: Tensor,
    steps: Tensor,
    turn: Tensor | None = None,
    share: float = 1.0,
) -> None:
    """As of the reference.

    Args:
        gradient, axis, rows, squares, steps: as there.
        turn: int64 ``[1]``: forward passes so far, this one's among them. With it only a share of them is looked at.
        share: of the passes.
    """
    y_BPC, at = _sampling(gradient, axis, rows)
    _feel[(triton.cdiv(at.channels, CHANNEL_BLOCK),)](
        y_BPC,
        at,
        squares,
        steps,
        turn,
        _limit(share),
        HAS_TURN=turn is not None,
        ROWS=ROWS,
        BLOCK=CHANNEL_BLOCK,
        NORM_BLOCK=NORM_BLOCK // 4,
    )


def _sampling(y: Tensor, axis: int, rows: int) -> tuple[Tensor, Sampling]:
    y_BPC = with_positions(y, axis)
    batch, positions, channels = y_BPC.shape
    stride_B, stride_P, stride_C = y_BPC.stride()
    return y_BPC, Sampling(stride_B, stride_P, stride_C, channels, *Spread.over(batch, positions, rows))


def _squared_norms(
    y_BPC: Tensor, at: Sampling, sums: Tensor, turn: Tensor | None, share: float
) -> tuple[Tensor, Tensor]:
    """Squared norms ``[N]``, and ``[2]``: the vectors that were summed before, and whether it is the pass's turn."""
    scratch = y_BPC.new_empty(at.vectors + 2, dtype=torch.float32)
    squares_N, about = scratch[: at.vectors], scratch[at.vectors :]
    _square[(at.vectors,)](
        y_BPC, at, squares_N, about, sums[-1:], turn, _limit(share), HAS_TURN=turn is not None, BLOCK=NORM_BLOCK
    )
    return squares_N, about


def _limit(share: float) -> int:
    return int(share * 2**32)


@triton.jit
def _is_due(turn, limit):  # type: ignore[no-untyped-def]
    return ((turn * RATIO >> 32) & 0xFFFFFFFF) < limit


@triton.jit
def _row(n, at):  # type: ignore[no-untyped-def]
    """Where the ``n``-th sampled vector begins."""
    sample = n // at.stretches
    position = n % at.stretches * at.length + sample % at.offsets * at.step + at.step // 2
    return (sample * at.every).to(tl.int64) * at.stride_B + position.to(tl.int64) * at.stride_P


@triton.jit
def _tile(y, at, squares_N, n, c):  # type: ignore[no-untyped-def]
    """Rows ``n`` of channels ``c``, ``[R, C]``, zero where they do not count; and whether they do, ``[R, 1]``."""
    counts_R1 = (tl.load(squares_N + n, mask=n < at.vectors, other=float("inf")) < LARGEST_SQUARE)[:, None]
    x_RC = y + _row(n, at)[:, None] + c[None, :] * at.stride_C
    return tl.load(x_RC, mask=counts_R1 & (c < at.channels)[None, :], other=0.0).to(tl.float32), counts_R1


@triton.jit
def _add(pointer, value, mask):  # type: ignore[no-untyped-def]
    tl.store(pointer, tl.load(pointer, mask=mask, other=0.0) + value, mask=mask)


@triton.jit
def _square(  # type: ignore[no-untyped-def]
    y,
    at,
    squares_N,
    about,
    before,
    turn,
    limit,
    HAS_TURN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0)
    is_due = n >= 0
    if HAS_TURN:
        is_due = _is_due(tl.load(turn), limit)
    if n == 0:
        tl.store(about, tl.load(before))
        tl.store(about + 1, is_due.to(tl.float32))
    if is_due:
        row = y + _row(n, at)
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, at.channels, BLOCK):
            c = first + tl.arange(0, BLOCK)
            x = tl.load(row + c * at.stride_C, mask=c < at.channels, other=0.0).to(tl.float32)
            total += x * x
        tl.store(squares_N + n, tl.sum(total))


@triton.jit
def _means(y, at, squares_N, c, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    count = 0.0
    total_C = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, at.vectors, ROWS):
        x_RC, counts_R1 = _tile(y, at, squares_N, first + tl.arange(0, ROWS), c)
        count += tl.sum(counts_R1.to(tl.float32))
        total_C += tl.sum(x_RC, 0)
    return total_C / tl.maximum(count, 1.0)


@triton.jit
def _look(  # type: ignore[no-untyped-def]
    y,
    at,
    squares_N,
    about,
    sums,
    pivot,
    turn,
    threshold,
    HAS_THRESHOLD: tl.constexpr,
    HAS_TURN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    if HAS_TURN and block == 0:
        tl.store(turn, tl.load(turn) + 1)
    if tl.load(about + 1) > 0:
        c = block * BLOCK + tl.arange(0, BLOCK)
        inside, has_next = c < at.channels, c + 1 < at.channels
        if tl.load(about) == 0:  # the first vectors of a window give the pivots, which are zero before
            pivot_C = _means(y, at, squares_N, c, ROWS, BLOCK)
            pivot_next_C = _means(y, at, squares_N, c + 1, ROWS, BLOCK)
            tl.store(pivot + c, pivot_C, mask=inside)
        else:
            pivot_C = tl.load(pivot + c, mask=inside, other=0.0)
            pivot_next_C = tl.load(pivot + c + 1, mask=has_next, other=0.0)
        count = 0.0
        sum_C = tl.zeros((BLOCK,), tl.float32)
        square_C = tl.zeros((BLOCK,), tl.float32)
        inactive_C = tl.zeros((BLOCK,), tl.float32)
        product_C = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, at.vectors, ROWS):
            n = first + tl.arange(0, ROWS)
            x_RC, counts_R1 = _tile(y, at, squares_N, n, c)
            next_RC, _ = _tile(y, at, squares_N, n, c + 1)
            deviation_RC = tl.where(counts_R1, x_RC - pivot_C[None, :], 0.0)
            deviation_next_RC = tl.where(counts_R1, next_RC - pivot_next_C[None, :], 0.0)
            count += tl.sum(counts_R1.to(tl.float32))
            sum_C += tl.sum(deviation_RC, 0)
            square_C += tl.sum(deviation_RC * deviation_RC, 0)
            product_C += tl.sum(deviation_RC * deviation_next_RC, 0)
            if HAS_THRESHOLD:
                inactive_C += tl.sum((counts_R1 & (x_RC <= threshold)).to(tl.float32), 0)
        _add(sums + c, sum_C, inside)
        _add(sums + at.channels + c, square_C, inside)
        _add(sums + 2 * at.channels + c, inactive_C, inside)
        _add(sums + 3 * at.channels + c, product_C, has_next)
        if block == 0:
            tl.store(sums + 4 * at.channels - 1, tl.load(about) + count)


@triton.jit
def _feel(  # type: ignore[no-untyped-def]
    y,
    at,
    squares,
    steps,
    turn,
    limit,
    HAS_TURN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
):
    """Every program takes the norms of all rows by itself: that is dearer than a launch of their own, but only a share
    of the passes does it, and a launch is there in each."""
    block = tl.program_id(0)
    is_due = block >= 0
    if HAS_TURN:
        is_due = _is_due(tl.load(turn) - 1, limit)
    if is_due:
        c = block * BLOCK + tl.arange(0, BLOCK)
        count = 0.0
        total = 0.0
        square_C = tl.zeros((BLOCK,), tl.float32)
        for first_row in range(0, at.vectors, ROWS):
            n = first_row + tl.arange(0, ROWS)
            rows = y + _row(n, at)[:, None]
            inside_R1 = (n < at.vectors)[:, None]
            square_R = tl.zeros((ROWS,), tl.float32)
            for first in range(0, at.channels, NORM_BLOCK):
                all_c = first + tl.arange(0, NORM_BLOCK)
                mask = inside_R1 & (all_c < at.channels)[None, :]
                x_RC = tl.load(rows + all_c[None, :] * at.stride_C, mask=mask, other=0.0).to(tl.float32)
                square_R += tl.sum(x_RC * x_RC, 1)
            counts_R = (n < at.vectors) & (square_R < LARGEST_SQUARE)
            mask = counts_R[:, None] & (c < at.channels)[None, :]
            x_RC = tl.load(rows + c[None, :] * at.stride_C, mask=mask, other=0.0).to(tl.float32)
            square_C += tl.sum(x_RC * x_RC, 0)
            count += tl.sum(counts_R.to(tl.float32))
            total += tl.sum(tl.where(counts_R, square_R, 0.0))
        _add(squares + c, square_C, c < at.channels)
        if block == 0:
            mean = total / (tl.maximum(count, 1.0) * at.channels)
            _add(steps, count, True)
            _add(steps + 1, tl.minimum(count, 1.0), True)
            _add(steps + 2, tl.sqrt(mean), True)
            _add(steps + 3, mean, True)
