"""The backward pass of grafts, in Triton; of those that read their own channels the hidden layer is computed anew.

Each program sums gradients of parameters over its rows, and a second launch over the programs, in one order: the same
bytes each time. Where few channels have grafts, what these have read was put aside, and ``grad_y`` may be ``grad``.
"""

# M rows, J channels of a tile, I hidden features of a tile, K channels of a graft, H its hidden features, P programs,
# G grafts, N parameters of one graft

import triton
import triton.language as tl

from esper.kasmina.kernels.grafts.tile import (
    AFFINE,
    COUNTS,
    GLU,
    LOW_RANK,
    activated_again,
    aside_at,
    base_of,
    channel_at,
    copy_again,
    copy_gap,
    graft_of,
    largest,
    lost_columns,
    not_finite,
    nothing_yet,
    put_aside,
    row_at,
    sound,
    spoilt,
)


@triton.jit(do_not_specialize=COUNTS)
def backward(  # type: ignore[no-untyped-def]
    grad,
    grad_stride,
    y,
    y_stride,
    grad_y,
    grad_y_stride,
    aside,
    aside_stride,
    weights,
    weights_stride,
    slots,
    first,
    width,
    shares,
    pre,
    pre_stride,
    grad_pre,
    flags,
    partial,
    rows,
    grafts,
    tiles,
    columns,
    programs,
    size,
    LEARNS: tl.constexpr,
    WAS_PUT_ASIDE: tl.constexpr,
    FAMILY: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    BEHIND: tl.constexpr,
    READS_INPUT: tl.constexpr,
    PACK: tl.constexpr,
    SLOTS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    FLAT: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
    GAP: tl.constexpr,
    STAGES: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    FAST: tl.constexpr,
):
    tile, program = tl.program_id(0) % columns, tl.program_id(0) // columns
    if tile >= tiles:
        gap = tile - tiles
        copy_gap(
            grad,
            grad_stride,
            grad_y,
            grad_y_stride,
            first + grafts + gap,
            width + gap,
            program,
            programs,
            rows,
            ALIGNMENT,
            FLAT,
            ROWS,
            GAP,
        )
    else:
        graft_J, within_J, is_there_J = graft_of(tile, grafts, K, PACK, CHANNELS)
        channel_J = channel_at(first, tile, graft_J, within_J, is_there_J, PACK, CHANNELS, ALIGNMENT)
        aside_J = aside_at(graft_J, within_J, K)
        share_J = tl.load(shares + graft_J, mask=is_there_J, other=0.0)
        base_J = base_of(weights, weights_stride, slots, graft_J, is_there_J)
        SKIPPED: tl.constexpr = BEHIND if READS_INPUT else 0
        into_J = partial + (program.to(tl.int64) * grafts + graft_J) * size - SKIPPED
        worst = nothing_yet(ROWS, CHANNELS, PACK)
        grad_b2_MJ = tl.zeros((ROWS, CHANNELS), tl.float32)
        if FAMILY == AFFINE:
            scale_J = share_J * tl.load(base_J + within_J, mask=is_there_J, other=0.0).to(tl.float32)
            grad_scale_MJ = tl.zeros((ROWS, CHANNELS), tl.float32)
        else:
            WIDTH: tl.constexpr = 2 * H if FAMILY == GLU else H
            SECOND: tl.constexpr = BEHIND + (0 if FAMILY == LOW_RANK else WIDTH)
            i = tl.arange(0, HIDDEN)
            within_I, graft_I = i % H, tile * PACK + i // H
            is_there_I = (i < PACK * H) & (graft_I < grafts)
            share_I = tl.load(shares + graft_I, mask=is_there_I, other=0.0)
            is_own_JI = ((tl.arange(0, CHANNELS) // K)[:, None] == (i // H)[None, :]) & is_there_J[:, None]
            second_JI = SECOND + within_J[:, None] * H + within_I[None, :]
            w2_JI = tl.load(base_J[:, None] + second_JI, mask=is_own_JI, other=0.0).to(DOT)
            grad_w2_JI = tl.zeros((CHANNELS, HIDDEN), tl.float32)
            grad_b1_MI = tl.zeros((ROWS, HIDDEN), tl.float32)
            if FAMILY == GLU:
                grad_bv_MI = tl.zeros((ROWS, HIDDEN), tl.float32)
            if READS_INPUT:
                hidden_I = graft_I * WIDTH + within_I
            else:
                first_JI = within_I[None, :] * K + within_J[:, None]
                w1_JI = tl.load(base_J[:, None] + first_JI, mask=is_own_JI, other=0.0).to(DOT)
                w1_IJ = tl.trans(w1_JI)
                grad_w1_JI = tl.zeros((CHANNELS, HIDDEN), tl.float32)
                if FAMILY == GLU:
                    v1_JI = tl.load(base_J[:, None] + first_JI + H * K, mask=is_own_JI, other=0.0).to(DOT)
                    v1_IJ = tl.trans(v1_JI)
                    grad_v1_JI = tl.zeros((CHANNELS, HIDDEN), tl.float32)
                if FAMILY != LOW_RANK:
                    base_I = base_of(weights, weights_stride, slots, graft_I, is_there_I) + BEHIND + within_I
                    b1_I = tl.load(base_I, mask=is_there_I, other=0.0).to(tl.float32)
                    if FAMILY == GLU:
                        bv_I = tl.load(base_I + H, mask=is_there_I, other=0.0).to(tl.float32)
        for t in tl.range(program, rows.batch * rows.blocks, programs, num_stages=STAGES):
            grad_M, is_row_M = row_at(t, rows, grad_stride, FLAT, ROWS)
            mask_MJ = is_row_M[:, None] & is_there_J[None, :]
            grad_MJ = tl.load(grad + grad_M[:, None] + channel_J[None, :] * grad_stride[2], mask=mask_MJ, other=0.0)
            before_MJ = grad_MJ.to(tl.float32)
            grad_b2_MJ += before_MJ
            if not READS_INPUT:
                if aside is not None:
                    put_aside(aside, aside_stride, grad_MJ, t, aside_J, is_there_J, rows, FLAT, ROWS)
                y_M, _ = row_at(t, rows, y_stride, FLAT, ROWS)
                from_J = aside_J if WAS_PUT_ASIDE else channel_J
                y_MJ = tl.load(y + y_M[:, None] + from_J[None, :] * y_stride[2], mask=mask_MJ, other=0.0)
            if FAMILY == AFFINE:
                more_MJ = before_MJ * scale_J[None, :]
                grad_scale_MJ += before_MJ * y_MJ.to(tl.float32)
            else:
                low_MJ = grad_MJ.to(DOT)
                if PACK > 1:
                    low_MJ = sound(low_MJ)
                if READS_INPUT:
                    pre_M, _ = row_at(t, rows, pre_stride, FLAT, ROWS)
                    at_MI, mask_MI = pre_M[:, None] + hidden_I[None, :], is_row_M[:, None] & is_there_I[None, :]
                    pre_MI = tl.load(pre + at_MI, mask=mask_MI, other=0.0).to(tl.float32)
                    value_MI = pre_MI
                    if FAMILY == GLU:
                        value_MI = tl.load(pre + at_MI + H, mask=mask_MI, other=0.0).to(tl.float32)
                else:
                    x_MJ = y_MJ.to(DOT)
                    if PACK > 1:
                        x_MJ = sound(x_MJ)
                    pre_MI = tl.dot(x_MJ, w1_JI, input_precision=PRECISION)
                    value_MI = pre_MI
                    if FAMILY != LOW_RANK:
                        pre_MI += b1_I[None, :]
                    if FAMILY == GLU:
                        value_MI = tl.dot(x_MJ, v1_JI, input_precision=PRECISION) + bv_I[None, :]
                grad_act_MI = tl.dot(low_MJ, w2_JI, input_precision=PRECISION) * share_I[None, :]
                act_MI, grad_pre_MI, grad_value_MI = activated_again(grad_act_MI, pre_MI, value_MI, FAMILY, FAST)
                grad_b1_MI += grad_pre_MI
                low_pre_MI = grad_pre_MI.to(DOT)
                if PACK > 1:
                    low_pre_MI = sound(low_pre_MI)
                if LEARNS:
                    grad_w2_JI += tl.dot(tl.trans(low_MJ), act_MI.to(DOT), input_precision=PRECISION)
                if READS_INPUT:
                    tl.store(grad_pre + at_MI, low_pre_MI, mask=mask_MI)
                else:
                    more_MJ = tl.dot(low_pre_MI, w1_IJ, input_precision=PRECISION)
                    if LEARNS:
                        grad_w1_JI += tl.dot(tl.trans(x_MJ), low_pre_MI, input_precision=PRECISION)
                if FAMILY == GLU:
                    grad_bv_MI += grad_value_MI
                    low_value_MI = grad_value_MI.to(DOT)
                    if PACK > 1:
                        low_value_MI = sound(low_value_MI)
                    if READS_INPUT:
                        tl.store(grad_pre + at_MI + H, low_value_MI, mask=mask_MI)
                    else:
                        more_MJ += tl.dot(low_value_MI, v1_IJ, input_precision=PRECISION)
                        if LEARNS:
                            grad_v1_JI += tl.dot(tl.trans(x_MJ), low_value_MI, input_precision=PRECISION)
            if not READS_INPUT:
                summed_MJ = before_MJ + more_MJ
                worst = largest(worst, summed_MJ, PACK)
                if PACK > 1:
                    summed_MJ = tl.where((share_J != 0.0)[None, :], summed_MJ, before_MJ)
                to_M, _ = row_at(t, rows, grad_y_stride, FLAT, ROWS)
                at_MJ = grad_y + to_M[:, None] + channel_J[None, :] * grad_y_stride[2]
                tl.store(at_MJ, summed_MJ.to(grad_MJ.dtype), mask=mask_MJ)
        if (PACK == 1) and not READS_INPUT:
            old, old_stride, old_J = (grad, grad_stride, channel_J) if aside is None else (aside, aside_stride, aside_J)
            if tl.max(share_J) == 0.0:
                copy_again(
                    old,
                    old_stride,
                    old_J,
                    grad_y,
                    grad_y_stride,
                    channel_J,
                    is_there_J,
                    program,
                    programs,
                    rows,
                    FLAT,
                    ROWS,
                )
        grad_b2_J = share_J * tl.sum(grad_b2_MJ, 0)
        is_bad_J = not_finite(grad_b2_J) | (lost_columns(worst, grad.dtype.element_ty, CHANNELS) != 0)
        if FAMILY != AFFINE:
            grad_b1_I = tl.sum(grad_b1_MI, 0)
            is_bad_I = not_finite(grad_b1_I)
            if FAMILY == GLU:
                grad_bv_I = tl.sum(grad_bv_MI, 0)
                is_bad_I = is_bad_I | not_finite(grad_bv_I)
            is_bad_J = is_bad_J | (tl.max((is_own_JI & is_bad_I[None, :]).to(tl.int32), 1) != 0)
        graft, is_bad, is_one = spoilt(is_bad_J, tile, within_J, is_there_J, K, PACK, SLOTS)
        tl.store(flags + program * grafts + graft, is_bad, mask=is_one & (graft < grafts))
        if LEARNS:
            if FAMILY == AFFINE:
                tl.store(into_J + within_J, share_J * tl.sum(grad_scale_MJ, 0), mask=is_there_J)
                tl.store(into_J + K + within_J, grad_b2_J, mask=is_there_J)
            else:
                tl.store(into_J[:, None] + second_JI, share_J[:, None] * grad_w2_JI, mask=is_own_JI)
                if not READS_INPUT:
                    tl.store(into_J[:, None] + first_JI, grad_w1_JI, mask=is_own_JI)
                    if FAMILY == GLU:
                        tl.store(into_J[:, None] + first_JI + H * K, grad_v1_JI, mask=is_own_JI)
                if FAMILY != LOW_RANK:
                    into_I = partial + (program.to(tl.int64) * grafts + graft_I) * size - SKIPPED + BEHIND + within_I
                    tl.store(into_I, grad_b1_I, mask=is_there_I)
                    tl.store(into_J + SECOND + H * K + within_J, grad_b2_J, mask=is_there_J)
                    if FAMILY == GLU:
                        tl.store(into_I + H, grad_bv_I, mask=is_there_I)


@triton.jit(do_not_specialize=COUNTS)
def sum_gradients(  # type: ignore[no-untyped-def]
    partial,
    grads,
    grads_stride,
    slots,
    found,
    flags,
    grafts,
    programs,
    size,
    SKIPPED: tl.constexpr,
    TRAINS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Over the programs, into the rows of the grafts; zero for those that do not train."""
    block, g = tl.program_id(0) // grafts, tl.program_id(0) % grafts
    n = block * BLOCK + tl.arange(0, BLOCK)
    total_N = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, AT_ONCE):
        p = start + tl.arange(0, AT_ONCE)
        at_PN = (p * grafts + g).to(tl.int64)[:, None] * size + n[None, :]
        total_N += tl.sum(tl.load(partial + at_PN, mask=(p < programs)[:, None] & (n < size)[None, :], other=0.0), 0)
    total_N = total_N.to(grads.dtype.element_ty)
    is_bad = tl.max((not_finite(total_N.to(tl.float32)) & (n < size)).to(tl.int32))
    tl.store(flags + (programs + block) * grafts + g, is_bad)
    if (tl.load(found + g) & TRAINS) == 0:
        total_N = tl.zeros_like(total_N)
    tl.store(grads + tl.load(slots + g) * grads_stride + SKIPPED + n, total_N, mask=n < size)
