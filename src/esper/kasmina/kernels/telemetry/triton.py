"""What seeds sense, in Triton: one launch for a look at an output, and one for a look at its gradient; torch needs some
thirty for both. Of a wide output one launch more takes the norms of the vectors.

A program sums a block of channels, over the sampled vectors whose norm tells that they count. No two programs write
the same number, so the same vectors give the same bytes. Whether it is a pass's turn may be asked on the device: a CUDA
graph repeats its launches, and nobody in Python is there to decide.
"""

# N sampled vectors, B samples, P positions, C channels, R rows of a tile

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.device import on_its_device
from esper.kasmina.kernels.telemetry.reference import GOLDEN_RATIO, LARGEST_NORM, Spread, with_positions

LARGEST_SQUARE = tl.constexpr(LARGEST_NORM**2)
RATIO = tl.constexpr(GOLDEN_RATIO)
CHANNEL_BLOCK, NORM_BYTES, ROWS = 128, 512, 32
STAGES = tl.constexpr(4)  # tiles that are on their way from memory

WIDE = 4096
"""Of so many channels every program takes all norms by itself: only a share of the passes does that, and a launch is
there in each. Of more it would cost too much."""


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


@on_its_device
def look(
    y: Tensor,
    axis: int,
    rows: int,
    threshold: float | None,
    sums: Tensor,
    pivot: Tensor,
    turn: Tensor,
    share: float | None = None,
) -> None:
    """As of the reference.

    Args:
        y, axis, rows, threshold, sums, pivot, turn, share: as there.
    """
    y_BPC, at = _sampling(y, axis, rows)
    squares_N = _squares(y_BPC, at, turn, share, after=0)
    _look[(triton.cdiv(at.channels, CHANNEL_BLOCK),)](
        y_BPC,
        at,
        squares_N,
        sums,
        pivot,
        turn,
        _limit(share),
        0.0 if threshold is None else threshold,
        HAS_THRESHOLD=threshold is not None,
        ASKS=share is not None,
        IS_WIDE=at.channels > WIDE,
        ROWS=ROWS,
        BLOCK=CHANNEL_BLOCK,
        NORM_BLOCK=NORM_BYTES // y.itemsize,
    )


@on_its_device
def feel(
    gradient: Tensor,
    axis: int,
    rows: int,
    squares: Tensor,
    steps: Tensor,
    turn: Tensor,
    share: float | None = None,
) -> None:
    """As of the reference.

    Args:
        gradient, axis, rows, squares, steps, turn, share: as there.
    """
    y_BPC, at = _sampling(gradient, axis, rows)
    squares_N = _squares(y_BPC, at, turn, share, after=1)
    _feel[(triton.cdiv(at.channels, CHANNEL_BLOCK),)](
        y_BPC,
        at,
        squares_N,
        squares,
        steps,
        turn,
        _limit(share),
        ASKS=share is not None,
        IS_WIDE=at.channels > WIDE,
        ROWS=ROWS,
        BLOCK=CHANNEL_BLOCK,
        NORM_BLOCK=NORM_BYTES // gradient.itemsize,
    )


def _sampling(y: Tensor, axis: int, rows: int) -> tuple[Tensor, Sampling]:
    y_BPC = with_positions(y, axis)
    batch, positions, channels = y_BPC.shape
    stride_B, stride_P, stride_C = y_BPC.stride()
    return y_BPC, Sampling(stride_B, stride_P, stride_C, channels, *Spread.over(batch, positions, rows))


def _squares(y_BPC: Tensor, at: Sampling, turn: Tensor, share: float | None, *, after: int) -> Tensor:
    """Squared norms ``[N]`` of a wide output; else room for them for each program."""
    if at.channels <= WIDE:
        return y_BPC.new_empty(at.vectors * triton.cdiv(at.channels, CHANNEL_BLOCK), dtype=torch.float32)
    squares_N = y_BPC.new_empty(at.vectors, dtype=torch.float32)
    _square[(triton.cdiv(at.vectors, ROWS),)](
        y_BPC,
        at,
        squares_N,
        turn,
        after,
        _limit(share),
        ASKS=share is not None,
        ROWS=ROWS,
        BLOCK=NORM_BYTES // y_BPC.itemsize,
    )
    return squares_N


def _limit(share: float | None) -> int:
    return int((share or 0.0) * 2**32)


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
def _store_squares(y, at, squares_N, first_row, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Squared norms of some sampled vectors."""
    n = first_row + tl.arange(0, ROWS)
    rows = y + _row(n, at)[:, None]
    square_R = tl.zeros((ROWS,), tl.float32)
    for first in tl.range(0, at.channels, BLOCK, num_stages=STAGES):
        c = first + tl.arange(0, BLOCK)
        mask = (n < at.vectors)[:, None] & (c < at.channels)[None, :]
        x_RC = tl.load(rows + c[None, :] * at.stride_C, mask=mask, other=0.0).to(tl.float32)
        square_R += tl.sum(x_RC * x_RC, 1)
    tl.store(squares_N + n, square_R, mask=n < at.vectors)


@triton.jit(do_not_specialize=("after",))
def _square(  # type: ignore[no-untyped-def]
    y,
    at,
    squares_N,
    turn,
    after,
    limit,
    ASKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    is_due = program >= 0
    if ASKS:
        is_due = _is_due(tl.load(turn) - after, limit)
    if is_due:
        _store_squares(y, at, squares_N, program * ROWS, ROWS, BLOCK)


@triton.jit
def _own_squares(y, at, squares_N, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Those of all of them, which only this program needs."""
    for first_row in range(0, at.vectors, ROWS):
        _store_squares(y, at, squares_N, first_row, ROWS, BLOCK)
    tl.debug_barrier()


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
    sums,
    pivot,
    turn,
    limit,
    threshold,
    HAS_THRESHOLD: tl.constexpr,
    ASKS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    last = sums + 4 * at.channels - 1
    turn_now, before = tl.load(turn), tl.load(last)
    is_due = block >= 0
    if ASKS:
        is_due = _is_due(turn_now, limit)
    count = tl.full((), 0.0, tl.float32)
    if is_due:
        if not IS_WIDE:
            squares_N += block * at.vectors
            _own_squares(y, at, squares_N, ROWS, NORM_BLOCK)
        c = block * BLOCK + tl.arange(0, BLOCK)
        inside, has_next = c < at.channels, c + 1 < at.channels
        if before == 0:  # the first vectors of a window give the pivots, which are zero before
            pivot_C = _means(y, at, squares_N, c, ROWS, BLOCK)
            pivot_next_C = _means(y, at, squares_N, c + 1, ROWS, BLOCK)
            tl.store(pivot + c, pivot_C, mask=inside)
        else:
            pivot_C = tl.load(pivot + c, mask=inside, other=0.0)
            pivot_next_C = tl.load(pivot + c + 1, mask=has_next, other=0.0)
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
    tl.debug_barrier()
    if tl.atomic_add(turn + 1, 1) == tl.num_programs(0) - 1:  # all others have read what is written here
        tl.store(last, before + count)
        tl.store(turn + 1, 0)
        if ASKS:
            tl.store(turn, turn_now + 1)


@triton.jit
def _feel(  # type: ignore[no-untyped-def]
    y,
    at,
    squares_N,
    squares,
    steps,
    turn,
    limit,
    ASKS: tl.constexpr,
    IS_WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    NORM_BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    is_due = block >= 0
    if ASKS:
        is_due = _is_due(tl.load(turn) - 1, limit)
    if is_due:
        if not IS_WIDE:
            squares_N += block * at.vectors
            _own_squares(y, at, squares_N, ROWS, NORM_BLOCK)
        c = block * BLOCK + tl.arange(0, BLOCK)
        count = 0.0
        total = 0.0
        square_C = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, at.vectors, ROWS):
            n = first + tl.arange(0, ROWS)
            x_RC, counts_R1 = _tile(y, at, squares_N, n, c)
            square_C += tl.sum(x_RC * x_RC, 0)
            count += tl.sum(counts_R1.to(tl.float32))
            square_R = tl.load(squares_N + n, mask=n < at.vectors, other=float("inf"))
            total += tl.sum(tl.where(square_R < LARGEST_SQUARE, square_R, 0.0))
        _add(squares + c, square_C, c < at.channels)
        if block == 0:
            mean = total / (tl.maximum(count, 1.0) * at.channels)
            _add(steps, count, True)
            _add(steps + 1, tl.minimum(count, 1.0), True)
            _add(steps + 2, tl.sqrt(mean), True)
            _add(steps + 3, mean, True)
