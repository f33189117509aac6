"""The forward pass of grafts, in Triton: one pass over what the host wrote.

Each program takes some rows of one tile of channels, or of channels that no graft writes, which it copies. A second
launch, which mostly has nothing to do, looks whether a graft gave what is not finite, and takes it back. Where few
channels have grafts, ``out`` may be ``y``: then what these read is put aside, and nothing else is touched.
"""

# M rows, J channels of a tile, I hidden features of a tile, K channels of a graft, H its hidden features

import triton
import triton.language as tl

from esper.kasmina.kernels.grafts.tile import (
    AFFINE,
    COUNTS,
    GLU,
    LOW_RANK,
    activated,
    aside_at,
    base_of,
    channel_at,
    copy_again,
    copy_gap,
    graft_of,
    largest,
    lost_columns,
    nothing_yet,
    put_aside,
    row_at,
    sound,
    spoilt,
)


@triton.jit(do_not_specialize=COUNTS)
def forward(  # type: ignore[no-untyped-def]
    y,
    y_stride,
    out,
    out_stride,
    aside,
    aside_stride,
    weights,
    weights_stride,
    slots,
    first,
    width,
    seeds,
    alpha,
    pre,
    pre_stride,
    flags,
    rows,
    grafts,
    tiles,
    columns,
    programs,
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
            y,
            y_stride,
            out,
            out_stride,
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
        if alpha is None:  # fossils count in full
            share_J = is_there_J.to(tl.float32)
        else:
            seed_J = tl.load(seeds + graft_J, mask=is_there_J, other=0)
            share_J = tl.load(alpha + seed_J, mask=is_there_J, other=0.0)
        aside_J = aside_at(graft_J, within_J, K)
        base_J = base_of(weights, weights_stride, slots, graft_J, is_there_J)
        worst = nothing_yet(ROWS, CHANNELS, PACK)
        if FAMILY == AFFINE:
            scale_J = tl.load(base_J + within_J, mask=is_there_J, other=0.0).to(tl.float32)
            shift_J = tl.load(base_J + K + within_J, mask=is_there_J, other=0.0).to(tl.float32)
        else:
            WIDTH: tl.constexpr = 2 * H if FAMILY == GLU else H
            SECOND: tl.constexpr = BEHIND + (0 if FAMILY == LOW_RANK else WIDTH)
            i = tl.arange(0, HIDDEN)
            within_I, graft_I = i % H, tile * PACK + i // H
            is_there_I = (i < PACK * H) & (graft_I < grafts)
            is_own_JI = ((tl.arange(0, CHANNELS) // K)[:, None] == (i // H)[None, :]) & is_there_J[:, None]
            second_JI = base_J[:, None] + SECOND + within_J[:, None] * H + within_I[None, :]
            w2_IJ = tl.trans(tl.load(second_JI, mask=is_own_JI, other=0.0).to(DOT))
            if FAMILY != LOW_RANK:
                b2_J = tl.load(base_J + SECOND + H * K + within_J, mask=is_there_J, other=0.0).to(tl.float32)
            if READS_INPUT:
                hidden_I = graft_I * WIDTH + within_I
            else:
                first_JI = base_J[:, None] + within_I[None, :] * K + within_J[:, None]
                w1_JI = tl.load(first_JI, mask=is_own_JI, other=0.0).to(DOT)
                if FAMILY == GLU:
                    v1_JI = tl.load(first_JI + H * K, mask=is_own_JI, other=0.0).to(DOT)
                if FAMILY != LOW_RANK:
                    base_I = base_of(weights, weights_stride, slots, graft_I, is_there_I) + BEHIND + within_I
                    b1_I = tl.load(base_I, mask=is_there_I, other=0.0).to(tl.float32)
                    if FAMILY == GLU:
                        bv_I = tl.load(base_I + H, mask=is_there_I, other=0.0).to(tl.float32)
            worst_MI = nothing_yet(ROWS, HIDDEN, PACK)
        for t in tl.range(program, rows.batch * rows.blocks, programs, num_stages=STAGES):
            from_M, is_row_M = row_at(t, rows, y_stride, FLAT, ROWS)
            to_M, _ = row_at(t, rows, out_stride, FLAT, ROWS)
            mask_MJ = is_row_M[:, None] & is_there_J[None, :]
            y_MJ = tl.load(y + from_M[:, None] + channel_J[None, :] * y_stride[2], mask=mask_MJ, other=0.0)
            if aside is not None:
                put_aside(aside, aside_stride, y_MJ, t, aside_J, is_there_J, rows, FLAT, ROWS)
            if FAMILY == AFFINE:
                delta_MJ = y_MJ.to(tl.float32) * scale_J[None, :] + shift_J[None, :]
            else:
                if READS_INPUT:
                    pre_M, _ = row_at(t, rows, pre_stride, FLAT, ROWS)
                    mask_MI = is_row_M[:, None] & is_there_I[None, :]
                    pre_MI = tl.load(pre + pre_M[:, None] + hidden_I[None, :], mask=mask_MI, other=0.0).to(tl.float32)
                    value_MI = pre_MI
                    if FAMILY == GLU:
                        value_MI = tl.load(pre + pre_M[:, None] + (hidden_I + H)[None, :], mask=mask_MI, other=0.0)
                        value_MI = value_MI.to(tl.float32)
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
                act_MI = activated(pre_MI, value_MI, FAMILY, FAST).to(DOT)
                if PACK > 1:
                    worst_MI = largest(worst_MI, act_MI.to(tl.float32), PACK)
                    act_MI = sound(act_MI)
                delta_MJ = tl.dot(act_MI, w2_IJ, input_precision=PRECISION)
                if FAMILY != LOW_RANK:
                    delta_MJ += b2_J[None, :]
            before_MJ = y_MJ.to(tl.float32)
            grown_MJ = before_MJ + share_J[None, :] * delta_MJ
            worst = largest(worst, grown_MJ, PACK)
            if PACK > 1:
                grown_MJ = tl.where((share_J != 0.0)[None, :], grown_MJ, before_MJ)
            at_MJ = out + to_M[:, None] + channel_J[None, :] * out_stride[2]
            tl.store(at_MJ, grown_MJ.to(y_MJ.dtype), mask=mask_MJ)
        if PACK == 1:
            old, old_stride, old_J = (y, y_stride, channel_J) if aside is None else (aside, aside_stride, aside_J)
            if tl.max(share_J) == 0.0:
                copy_again(
                    old, old_stride, old_J, out, out_stride, channel_J, is_there_J, program, programs, rows, FLAT, ROWS
                )
        is_bad_J = lost_columns(worst, y.dtype.element_ty, CHANNELS) != 0
        if (FAMILY != AFFINE) & (PACK > 1):
            is_bad_I = lost_columns(worst_MI, DOT, HIDDEN)
            is_bad_J = is_bad_J | (tl.max(tl.where(is_own_JI, is_bad_I[None, :], 0), 1) != 0)
        graft, is_bad, is_one = spoilt(is_bad_J, tile, within_J, is_there_J, K, PACK, SLOTS)
        tl.store(flags + program * grafts + graft, is_bad, mask=is_one & (graft < grafts))
