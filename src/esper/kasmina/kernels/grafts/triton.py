"""Grafts that read and write chunks of channels, in Triton: forward, and backward with the hidden layer computed anew.

Each program takes some rows of one graft's chunk. What is not finite is noted in a graft's flags while all is written;
a second launch, which mostly has nothing to do, takes back what a faulty graft has written. Gradients of parameters are
summed by each program over its rows, and by a last launch over the programs, in one order: the same bytes each time.
"""

# M rows, C channels of the place, G grafts, K channels of a graft, H hidden features, P programs of one graft

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.grafts.family import Family, Shape

NOT_SOUND, NOT_HOSTS = 1, 2
"""Flags: what a graft gives is not finite; what it got from the host is not."""

PROGRAMS = 32
"""Of one graft, in a backward pass, at most."""

AFFINE, LOW_RANK, MLP, GLU = (tl.constexpr(int(one)) for one in Family)
SOUND_BIT, HOST_BIT = tl.constexpr(NOT_SOUND), tl.constexpr(NOT_HOSTS)
SQRT_HALF, SQRT_TWO_PI = tl.constexpr(0.5**0.5), tl.constexpr((2 * 3.141592653589793) ** -0.5)


class Tiles(NamedTuple):
    """How a graft is cut up."""

    rows: int
    channels: int
    hidden: int

    @classmethod
    def of(cls, shape: Shape) -> "Tiles":
        """Powers of two, as ``tl.dot`` takes them."""
        channels = max(16, triton.next_power_of_2(shape.channels))
        hidden = max(16, min(64, triton.next_power_of_2(max(1, shape.hidden))))
        return cls(64 if channels <= 64 else 32, channels, hidden)


def forward(
    y_MC: Tensor, params_GN: Tensor, first_G: Tensor, alpha_G: Tensor, counts_G: Tensor, shape: Shape
) -> tuple[Tensor, Tensor]:
    """What the host wrote with all grafts.

    Args:
        y_MC: what the host wrote, ``[M, C]``, with a stride of 1 along C.
        params_GN: parameters of the grafts.
        first_G: int32, first channel of each.
        alpha_G: float32.
        counts_G: bool; a graft that does not count adds nothing.
        shape: of the grafts.

    Returns:
        ``[M, C]``, and the flags of the grafts, int32 ``[G]``.
    """
    grafts, rows, tiles = len(params_GN), len(y_MC), Tiles.of(shape)
    out_MC, flags_G = y_MC.clone(), torch.zeros(grafts, dtype=torch.int32, device=y_MC.device)
    grid = (triton.cdiv(rows, tiles.rows), grafts)
    strides = (rows, y_MC.stride(0), out_MC.stride(0))
    _forward[grid](
        y_MC, out_MC, params_GN, first_G, alpha_G, counts_G, flags_G, *strides, params_GN.stride(0), **_constants(shape)
    )
    _take_back[grid](
        y_MC, out_MC, first_G, flags_G, *strides, shape.channels, SPARED=0, ROWS=tiles.rows, CHANNELS=tiles.channels
    )
    return out_MC, flags_G


def backward(
    grad_MC: Tensor,
    y_MC: Tensor,
    params_GN: Tensor,
    first_G: Tensor,
    alpha_G: Tensor,
    counts_G: Tensor,
    flags_G: Tensor,
    shape: Shape,
    *,
    learns: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of :func:`forward`.

    Args:
        grad_MC: of its result.
        y_MC, params_GN, first_G, alpha_G, counts_G, shape: as there.
        flags_G: as it gave them.
        learns: whether gradients of the parameters are asked for.

    Returns:
        That of ``y_MC``, that of ``params_GN`` in float32, and flags of the backward pass, int32 ``[G]``.
    """
    grafts, rows, tiles = len(params_GN), len(y_MC), Tiles.of(shape)
    grad_y_MC, faults_G = grad_MC.clone(), torch.zeros_like(flags_G)
    blocks = triton.cdiv(rows, tiles.rows)
    programs = min(PROGRAMS, blocks)
    size = shape.num_parameters if learns else 0
    partial_PGN = torch.empty(programs, grafts, size, dtype=torch.float32, device=y_MC.device)
    _backward[(programs, grafts)](
        grad_MC,
        grad_y_MC,
        y_MC,
        params_GN,
        first_G,
        alpha_G,
        counts_G,
        flags_G,
        faults_G,
        partial_PGN,
        rows,
        grad_MC.stride(0),
        grad_y_MC.stride(0),
        y_MC.stride(0),
        params_GN.stride(0),
        grafts,
        size,
        LEARNS=learns,
        **_constants(shape),
    )
    grad_GN = _summed(partial_PGN, faults_G) if learns else None
    _take_back[(blocks, grafts)](
        grad_MC,
        grad_y_MC,
        first_G,
        faults_G,
        rows,
        grad_MC.stride(0),
        grad_y_MC.stride(0),
        shape.channels,
        SPARED=NOT_HOSTS,
        ROWS=tiles.rows,
        CHANNELS=tiles.channels,
    )
    return grad_y_MC, grad_GN, faults_G


def _constants(shape: Shape) -> dict[str, Any]:
    tiles = Tiles.of(shape)
    return {
        "FAMILY": int(shape.family),
        "K": shape.channels,
        "H": shape.hidden,
        "ROWS": tiles.rows,
        "CHANNELS": tiles.channels,
        "HIDDEN": tiles.hidden,
    }


def _summed(partial_PGN: Tensor, faults_G: Tensor) -> Tensor:
    """Over the programs; all zero for a graft at fault, which it may become here."""
    _, grafts, size = partial_PGN.shape
    grad_GN = torch.empty(grafts, size, dtype=torch.float32, device=partial_PGN.device)
    block = 256
    grid = (triton.cdiv(size, block), grafts)
    _sum[grid](partial_PGN, grad_GN, faults_G, len(partial_PGN), grafts, size, BLOCK=block)
    _drop[grid](grad_GN, faults_G, size, BLOCK=block)
    return grad_GN


@triton.jit
def _note(flags, g, is_bad, bit):  # type: ignore[no-untyped-def]
    if tl.sum(is_bad.to(tl.int32)) > 0:
        tl.atomic_or(flags + g, bit)


@triton.jit
def _not_finite(x):  # type: ignore[no-untyped-def]
    return ~(tl.abs(x) < float("inf"))


@triton.jit
def _activated(pre, value, FAMILY: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the second matrix reads."""
    if FAMILY == MLP:
        return pre * 0.5 * (1.0 + tl.erf(pre * SQRT_HALF))
    if FAMILY == GLU:
        return pre * tl.sigmoid(pre) * value
    return pre


@triton.jit
def _hidden(y_MK, base, h, k, at, mask_HK, mask_H, K: tl.constexpr, FAMILY: tl.constexpr):  # type: ignore[no-untyped-def]
    """Hidden features before their activation, and the first matrix ``[H, K]`` that made them."""
    w_HK = tl.load(base + (at + h)[:, None] * K + k[None, :], mask=mask_HK, other=0.0)
    pre_MH = tl.dot(y_MK, tl.trans(w_HK).to(y_MK.dtype), input_precision="ieee")
    return pre_MH, w_HK


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    y,
    out,
    params,
    first,
    alpha,
    counts,
    flags,
    rows,
    y_stride,
    out_stride,
    params_stride,
    FAMILY: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    g = tl.program_id(1)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, CHANNELS)
    mask_MK = (m < rows)[:, None] & (k < K)[None, :]
    c = tl.load(first + g) + k
    y_MK = tl.load(y + m.to(tl.int64)[:, None] * y_stride + c[None, :], mask=mask_MK, other=0.0)
    base = params + g.to(tl.int64) * params_stride
    delta_MK = tl.zeros((ROWS, CHANNELS), tl.float32)
    if FAMILY == AFFINE:
        scale_K = tl.load(base + k, mask=k < K, other=0.0).to(tl.float32)
        shift_K = tl.load(base + K + k, mask=k < K, other=0.0).to(tl.float32)
        delta_MK = y_MK.to(tl.float32) * scale_K[None, :] + shift_K[None, :]
    else:
        WIDTH: tl.constexpr = 2 * H if FAMILY == GLU else H
        HAS_BIAS: tl.constexpr = FAMILY != LOW_RANK
        SECOND: tl.constexpr = WIDTH * K + (WIDTH if HAS_BIAS else 0)
        for start in tl.static_range(0, H, HIDDEN):
            h = start + tl.arange(0, HIDDEN)
            mask_HK = (h < H)[:, None] & (k < K)[None, :]
            pre_MH, _ = _hidden(y_MK, base, h, k, 0, mask_HK, h < H, K, FAMILY)
            value_MH = pre_MH
            if HAS_BIAS:
                pre_MH += tl.load(base + WIDTH * K + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
            if FAMILY == GLU:
                value_MH, _ = _hidden(y_MK, base, h, k, H, mask_HK, h < H, K, FAMILY)
                value_MH += tl.load(base + WIDTH * K + H + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
            act_MH = _activated(pre_MH, value_MH, FAMILY)
            w_KH = tl.load(base + SECOND + k[:, None] * H + h[None, :], mask=tl.trans(mask_HK), other=0.0)
            delta_MK += tl.dot(act_MH.to(y_MK.dtype), tl.trans(w_KH).to(y_MK.dtype), input_precision="ieee")
        if HAS_BIAS:
            delta_MK += tl.load(base + SECOND + K * H + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    share = tl.where(tl.load(counts + g), tl.load(alpha + g), 0.0)
    grown_MK = (y_MK.to(tl.float32) + share * delta_MK).to(y_MK.dtype)
    if share != 0.0:
        tl.store(out + m.to(tl.int64)[:, None] * out_stride + c[None, :], grown_MK, mask=mask_MK)
        _note(flags, g, _not_finite(grown_MK.to(tl.float32)) & mask_MK, SOUND_BIT)
        _note(flags, g, _not_finite(y_MK.to(tl.float32)) & mask_MK, HOST_BIT)


@triton.jit
def _take_back(  # type: ignore[no-untyped-def]
    before,
    after,
    first,
    flags,
    rows,
    before_stride,
    after_stride,
    K,
    SPARED: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    g = tl.program_id(1)
    found = tl.load(flags + g)
    if ((found & SOUND_BIT) != 0) & ((found & SPARED) == 0):
        m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        k = tl.arange(0, CHANNELS)
        mask_MK = (m < rows)[:, None] & (k < K)[None, :]
        c = tl.load(first + g) + k
        kept_MK = tl.load(before + m.to(tl.int64)[:, None] * before_stride + c[None, :], mask=mask_MK)
        tl.store(after + m.to(tl.int64)[:, None] * after_stride + c[None, :], kept_MK, mask=mask_MK)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    grad,
    grad_y,
    y,
    params,
    first,
    alpha,
    counts,
    flags,
    faults,
    partial,
    rows,
    grad_stride,
    grad_y_stride,
    y_stride,
    params_stride,
    grafts,
    size,
    LEARNS: tl.constexpr,
    FAMILY: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    p, g = tl.program_id(0), tl.program_id(1)
    programs = tl.num_programs(0)
    k = tl.arange(0, CHANNELS)
    c = tl.load(first + g) + k
    base = params + g.to(tl.int64) * params_stride
    into = partial + (p.to(tl.int64) * grafts + g) * size
    is_on = tl.load(counts + g) & ((tl.load(flags + g) & SOUND_BIT) == 0)
    share = tl.where(is_on, tl.load(alpha + g), 0.0)
    if (tl.load(flags + g) & HOST_BIT) != 0:
        tl.atomic_or(faults + g, HOST_BIT)
    if FAMILY == AFFINE:
        scale_K = tl.load(base + k, mask=k < K, other=0.0).to(tl.float32)
        grad_scale_K = tl.zeros((CHANNELS,), tl.float32)
        grad_shift_K = tl.zeros((CHANNELS,), tl.float32)
        for start in range(p * ROWS, rows, programs * ROWS):
            m = start + tl.arange(0, ROWS)
            mask_MK = (m < rows)[:, None] & (k < K)[None, :]
            y_MK = tl.load(y + m.to(tl.int64)[:, None] * y_stride + c[None, :], mask=mask_MK, other=0.0)
            grad_MK = tl.load(grad + m.to(tl.int64)[:, None] * grad_stride + c[None, :], mask=mask_MK, other=0.0)
            delta_MK = grad_MK.to(tl.float32) * share
            more_MK = delta_MK * scale_K[None, :]
            grad_scale_K += tl.sum(delta_MK * y_MK.to(tl.float32), 0)
            grad_shift_K += tl.sum(delta_MK, 0)
            _note(faults, g, _not_finite(grad_MK.to(tl.float32)) & mask_MK, HOST_BIT)
            if share != 0.0:
                summed_MK = (grad_MK.to(tl.float32) + more_MK).to(grad_MK.dtype)
                _note(faults, g, _not_finite(summed_MK.to(tl.float32)) & mask_MK, SOUND_BIT)
                tl.store(grad_y + m.to(tl.int64)[:, None] * grad_y_stride + c[None, :], summed_MK, mask=mask_MK)
        if LEARNS:
            tl.store(into + k, grad_scale_K, mask=k < K)
            tl.store(into + K + k, grad_shift_K, mask=k < K)
    else:
        WIDTH: tl.constexpr = 2 * H if FAMILY == GLU else H
        HAS_BIAS: tl.constexpr = FAMILY != LOW_RANK
        SECOND: tl.constexpr = WIDTH * K + (WIDTH if HAS_BIAS else 0)
        grad_b2_K = tl.zeros((CHANNELS,), tl.float32)
        for start_H in tl.static_range(0, H, HIDDEN):
            h = start_H + tl.arange(0, HIDDEN)
            mask_HK = (h < H)[:, None] & (k < K)[None, :]
            w_KH = tl.load(base + SECOND + k[:, None] * H + h[None, :], mask=tl.trans(mask_HK), other=0.0)
            grad_w1_HK = tl.zeros((HIDDEN, CHANNELS), tl.float32)
            grad_v1_HK = tl.zeros((HIDDEN, CHANNELS), tl.float32)
            grad_w2_KH = tl.zeros((CHANNELS, HIDDEN), tl.float32)
            grad_b1_H = tl.zeros((HIDDEN,), tl.float32)
            grad_v_H = tl.zeros((HIDDEN,), tl.float32)
            for start in range(p * ROWS, rows, programs * ROWS):
                m = start + tl.arange(0, ROWS)
                mask_MK = (m < rows)[:, None] & (k < K)[None, :]
                y_MK = tl.load(y + m.to(tl.int64)[:, None] * y_stride + c[None, :], mask=mask_MK, other=0.0)
                grad_MK = tl.load(grad + m.to(tl.int64)[:, None] * grad_stride + c[None, :], mask=mask_MK, other=0.0)
                delta_MK = grad_MK.to(tl.float32) * share
                low_MK = delta_MK.to(y_MK.dtype)
                pre_MH, w1_HK = _hidden(y_MK, base, h, k, 0, mask_HK, h < H, K, FAMILY)
                if HAS_BIAS:
                    pre_MH += tl.load(base + WIDTH * K + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
                act_grad_MH = tl.dot(low_MK, w_KH.to(y_MK.dtype), input_precision="ieee")
                if FAMILY == GLU:
                    value_MH, v1_HK = _hidden(y_MK, base, h, k, H, mask_HK, h < H, K, FAMILY)
                    value_MH += tl.load(base + WIDTH * K + H + h, mask=h < H, other=0.0).to(tl.float32)[None, :]
                    gate_MH = tl.sigmoid(pre_MH)
                    act_MH = pre_MH * gate_MH * value_MH
                    grad_value_MH = act_grad_MH * pre_MH * gate_MH
                    grad_pre_MH = act_grad_MH * value_MH * gate_MH * (1.0 + pre_MH * (1.0 - gate_MH))
                elif FAMILY == MLP:
                    chance_MH = 0.5 * (1.0 + tl.erf(pre_MH * SQRT_HALF))
                    act_MH = pre_MH * chance_MH
                    density_MH = SQRT_TWO_PI * tl.exp(-0.5 * pre_MH * pre_MH)
                    grad_pre_MH = act_grad_MH * (chance_MH + pre_MH * density_MH)
                else:
                    act_MH = pre_MH
                    grad_pre_MH = act_grad_MH
                low_pre_MH = grad_pre_MH.to(y_MK.dtype)
                more_MK = tl.dot(low_pre_MH, w1_HK.to(y_MK.dtype), input_precision="ieee")
                if LEARNS:
                    grad_w2_KH += tl.dot(tl.trans(low_MK), act_MH.to(y_MK.dtype), input_precision="ieee")
                    grad_w1_HK += tl.dot(tl.trans(low_pre_MH), y_MK, input_precision="ieee")
                    grad_b1_H += tl.sum(grad_pre_MH, 0)
                    if start_H == 0:
                        grad_b2_K += tl.sum(delta_MK, 0)
                if FAMILY == GLU:
                    low_value_MH = grad_value_MH.to(y_MK.dtype)
                    more_MK += tl.dot(low_value_MH, v1_HK.to(y_MK.dtype), input_precision="ieee")
                    if LEARNS:
                        grad_v1_HK += tl.dot(tl.trans(low_value_MH), y_MK, input_precision="ieee")
                        grad_v_H += tl.sum(grad_value_MH, 0)
                at_MK = grad_y + m.to(tl.int64)[:, None] * grad_y_stride + c[None, :]
                if start_H == 0:
                    _note(faults, g, _not_finite(grad_MK.to(tl.float32)) & mask_MK, HOST_BIT)
                    so_far_MK = grad_MK
                else:
                    so_far_MK = tl.load(at_MK, mask=mask_MK, other=0.0)
                if share != 0.0:
                    summed_MK = (so_far_MK.to(tl.float32) + more_MK).to(grad_MK.dtype)
                    _note(faults, g, _not_finite(summed_MK.to(tl.float32)) & mask_MK, SOUND_BIT)
                    tl.store(at_MK, summed_MK, mask=mask_MK)
            if LEARNS:
                tl.store(into + h[:, None] * K + k[None, :], grad_w1_HK, mask=mask_HK)
                tl.store(into + SECOND + k[:, None] * H + h[None, :], grad_w2_KH, mask=tl.trans(mask_HK))
                if HAS_BIAS:
                    tl.store(into + WIDTH * K + h, grad_b1_H, mask=h < H)
                if FAMILY == GLU:
                    tl.store(into + (H + h)[:, None] * K + k[None, :], grad_v1_HK, mask=mask_HK)
                    tl.store(into + WIDTH * K + H + h, grad_v_H, mask=h < H)
        if LEARNS and HAS_BIAS:
            tl.store(into + SECOND + K * H + k, grad_b2_K, mask=k < K)


@triton.jit
def _sum(partial, grad, faults, programs, grafts, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n, g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    total_N = tl.zeros((BLOCK,), tl.float32)
    for p in range(programs):
        total_N += tl.load(partial + (p * grafts + g).to(tl.int64) * size + n, mask=n < size, other=0.0)
    _note(faults, g, _not_finite(total_N) & (n < size), SOUND_BIT)
    tl.store(grad + g.to(tl.int64) * size + n, total_N, mask=n < size)


@triton.jit
def _drop(grad, faults, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    n, g = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    found = tl.load(faults + g)
    if ((found & SOUND_BIT) != 0) & ((found & HOST_BIT) == 0):
        tl.store(grad + g.to(tl.int64) * size + n, tl.zeros((BLOCK,), tl.float32), mask=n < size)
