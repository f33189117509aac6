"""What the kernels of grafts have in common: where a tile's numbers lie, and the hidden layer.

Narrow grafts share a tile. Then their matrices stand as blocks on the diagonal of a larger one, with zeros elsewhere.
"""

# M rows, J channels of a tile, I hidden features of a tile, K channels of a graft, H its hidden features

import triton
import triton.language as tl

from esper.kasmina.kernels.grafts.family import Family

AFFINE, LOW_RANK, MLP, GLU = (tl.constexpr(int(one)) for one in Family)
COUNTS = ("weights_stride", "grads_stride", "grafts", "tiles", "columns", "programs", "notes", "size")
"""Arguments that change with what grows: no kernel is compiled anew for special values of them."""

LOG2_E = tl.constexpr(1.4426950408889634)
SQRT_TWO_PI = tl.constexpr((2 * 3.141592653589793) ** -0.5)


@triton.jit
def row_at(t, rows, stride, FLAT: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the rows of tile ``t`` begin, and which of them there are."""
    if FLAT:
        position_M = t * ROWS + tl.arange(0, ROWS)
        return position_M.to(tl.int64) * stride[1], position_M < rows.positions
    position_M = (t % rows.blocks) * ROWS + tl.arange(0, ROWS)
    at_M = (t // rows.blocks).to(tl.int64) * stride[0] + position_M.to(tl.int64) * stride[1]
    return at_M, position_M < rows.positions


@triton.jit
def graft_of(tile, grafts, K: tl.constexpr, PACK: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The graft that owns each channel of a tile, the channel's number there, and whether there is one."""
    j = tl.arange(0, CHANNELS)
    graft_J = tile * PACK + j // K
    return graft_J, j % K, (j < PACK * K) & (graft_J < grafts)


@triton.jit
def channel_at(  # type: ignore[no-untyped-def]
    first, tile, graft_J, within_J, is_there_J, PACK: tl.constexpr, CHANNELS: tl.constexpr, ALIGNMENT: tl.constexpr
):
    """Channels of the place that a tile's are."""
    if PACK == 1:
        return tl.multiple_of(tl.load(first + tile), ALIGNMENT) + tl.arange(0, CHANNELS)
    return tl.load(first + graft_J, mask=is_there_J, other=0) + within_J


@triton.jit
def aside_at(graft_J, within_J, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Channels of a tile where those of all grafts are put aside, one graft after the other."""
    return graft_J * K + within_J


@triton.jit
def put_aside(  # type: ignore[no-untyped-def]
    aside, stride, x_MJ, t, aside_J, is_there_J, rows, FLAT: tl.constexpr, ROWS: tl.constexpr
):
    """What is about to be written over."""
    at_M, is_row_M = row_at(t, rows, stride, FLAT, ROWS)
    tl.store(aside + at_M[:, None] + aside_J[None, :], x_MJ, mask=is_row_M[:, None] & is_there_J[None, :])


@triton.jit
def base_of(weights, stride, slots, graft_J, is_there_J):  # type: ignore[no-untyped-def]
    """Where each graft's parameters begin."""
    return weights + tl.load(slots + graft_J, mask=is_there_J, other=0) * stride


@triton.jit
def not_finite(x):  # type: ignore[no-untyped-def]
    """Whether each value is not."""
    return ~(tl.abs(x) < float("inf"))


@triton.jit
def sound(x):  # type: ignore[no-untyped-def]
    """Zero in place of what is not finite: in a product with zeros it would reach other grafts of the tile."""
    return tl.where(not_finite(x), 0.0, x)


@triton.jit
def larger(one, other):  # type: ignore[no-untyped-def]
    """NaN if either is."""
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(worst, x_MJ, PACK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The larger of what was and ``|x|``: of every number, or, where all are of one graft, of every row."""
    if PACK == 1:
        return larger(worst, tl.reduce(tl.abs(x_MJ), 1, larger))
    else:  # Triton takes tensors of two shapes in no other way
        return larger(worst, tl.abs(x_MJ))


@triton.jit
def nothing_yet(ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACK: tl.constexpr):  # type: ignore[no-untyped-def]
    """What :func:`largest` begins with."""
    if PACK == 1:
        return tl.zeros((ROWS,), tl.float32)
    else:  # Triton takes tensors of two shapes in no other way
        return tl.zeros((ROWS, COLUMNS), tl.float32)


@triton.jit
def lost_columns(worst, DTYPE: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which columns have what is not finite, or is not so once it is rounded to a dtype."""
    is_lost = not_finite(worst.to(DTYPE).to(tl.float32)).to(tl.int32)
    if len(worst.shape) == 1:
        return tl.max(is_lost, 0) + tl.zeros((COLUMNS,), tl.int32)
    else:  # Triton takes tensors of two shapes in no other way
        return tl.max(is_lost, 0)


@triton.jit
def spoilt(is_bad_J, tile, within_J, is_there_J, K: tl.constexpr, PACK: tl.constexpr, SLOTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The grafts of a tile, and whether any of their channels is bad."""
    i = tl.arange(0, SLOTS)
    j_J = tl.arange(0, is_bad_J.shape[0]) // K
    is_own = (i[:, None] == j_J[None, :]) & is_there_J[None, :]
    bad = tl.max(tl.where(is_own & is_bad_J[None, :], 1, 0), 1)
    return tile * PACK + i, bad, i < PACK


@triton.jit
def exp2(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """``2**x``; on an NVIDIA GPU as it comes from the special function unit, with zero in place of denormal numbers."""
    if FAST:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return tl.exp2(x)


@triton.jit
def inverse(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """``1 / x``, likewise."""
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return 1.0 / x


@triton.jit
def sigmoid(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logistic function."""
    return inverse(1.0 + exp2(x * -LOG2_E, FAST), FAST)


@triton.jit
def tail_of(x, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The chance that a normal variable is above ``|x|``, and ``exp(-x**2 / 2)``.

    Abramowitz and Stegun, "Handbook of mathematical functions", 1964, 7.1.26: off by 8e-8 at most.
    """
    bell = exp2(x * (x * (-0.5 * LOG2_E)), FAST)
    t = inverse(1.0 + 0.23164189 * tl.abs(x), FAST)
    series = -0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))
    return t * (0.127414796 + t * series) * bell, bell


@triton.jit
def activated(pre_MI, value_MI, FAMILY: tl.constexpr, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the second matrix reads."""
    if FAMILY == MLP:
        tail_MI, _ = tail_of(pre_MI, FAST)
        return tl.maximum(pre_MI, 0.0) - tl.abs(pre_MI) * tail_MI
    if FAMILY == GLU:
        return pre_MI * sigmoid(pre_MI, FAST) * value_MI
    return pre_MI


@triton.jit
def activated_again(grad_MI, pre_MI, value_MI, FAMILY: tl.constexpr, FAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """What :func:`activated` gives, and from the gradient of that those of what it takes."""
    if FAMILY == MLP:
        tail_MI, bell_MI = tail_of(pre_MI, FAST)
        act_MI = tl.maximum(pre_MI, 0.0) - tl.abs(pre_MI) * tail_MI
        chance_MI = tl.where(pre_MI > 0.0, 1.0 - tail_MI, tail_MI)
        return act_MI, grad_MI * (chance_MI + pre_MI * (SQRT_TWO_PI * bell_MI)), grad_MI
    if FAMILY == GLU:
        gate_MI = sigmoid(pre_MI, FAST)
        grad_pre_MI = grad_MI * value_MI * gate_MI * (1.0 + pre_MI * (1.0 - gate_MI))
        return pre_MI * gate_MI * value_MI, grad_pre_MI, grad_MI * pre_MI * gate_MI
    return pre_MI, grad_MI, grad_MI


@triton.jit
def copy_again(  # type: ignore[no-untyped-def]
    before,
    before_stride,
    from_J,
    after,
    after_stride,
    to_J,
    is_there_J,
    program,
    programs,
    rows,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Some channels as they were; over what was written there before, whose ``y + 0 * x`` has lost signs of zeros."""
    tl.debug_barrier()
    for t in tl.range(program, rows.batch * rows.blocks, programs):
        from_M, is_row_M = row_at(t, rows, before_stride, FLAT, ROWS)
        to_M, _ = row_at(t, rows, after_stride, FLAT, ROWS)
        mask = is_row_M[:, None] & is_there_J[None, :]
        x = tl.load(before + from_M[:, None] + from_J[None, :] * before_stride[2], mask=mask)
        tl.store(after + to_M[:, None] + to_J[None, :] * after_stride[2], x, mask=mask)


@triton.jit
def copy_gap(  # type: ignore[no-untyped-def]
    before,
    before_stride,
    after,
    after_stride,
    first,
    width,
    program,
    programs,
    rows,
    ALIGNMENT: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    GAP: tl.constexpr,
):
    """Channels that no graft writes, as they are."""
    j = tl.arange(0, GAP)
    channel_J = tl.multiple_of(tl.load(first), ALIGNMENT) + j
    is_there_J = j < tl.multiple_of(tl.load(width), ALIGNMENT)
    copy_again(
        before,
        before_stride,
        channel_J,
        after,
        after_stride,
        channel_J,
        is_there_J,
        program,
        programs,
        rows,
        FLAT,
        ROWS,
    )
