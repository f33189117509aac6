"""Launches of the kernels of grafts: two for a forward pass, three for a backward pass.

Grafts that read the place's input have their first matrices multiplied by torch, all in one product; the kernels begin
behind it. Where few channels have grafts and a tensor is nobody else's, it is written over, and what was in those
channels is put aside; else there is a new one.
"""

# M rows, G grafts, N parameters of one graft, I hidden features of all grafts, S slots, B samples, P positions,
# C channels, K channels of a graft

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.device import on_its_device
from esper.kasmina.kernels.grafts import settle
from esper.kasmina.kernels.grafts.backward import backward as backward_kernel
from esper.kasmina.kernels.grafts.backward import sum_gradients
from esper.kasmina.kernels.grafts.forward import forward as forward_kernel
from esper.kasmina.kernels.grafts.layout import GAP, Rows, Tiles, as_rows, beside, is_regular, power_of_2
from esper.kasmina.kernels.grafts.ops import About, Batch, Seeds

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK, AT_ONCE, STRIDE = 128, 32, 16

NOTES = 1024
"""More than the programs of a graft, the blocks of its parameters, and one for its first matrix."""

IS_FAST = torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"
"""Whether the instructions of NVIDIA's special function unit are there."""


class Launch:
    """How a batch of grafts is laid out over an output.

    Args:
        y_BPC: the output.
        batch: the grafts.
        dot: dtype of products.
        is_backward: for the backward pass.
        copies: whether channels that no graft writes are copied.
    """

    def __init__(self, y_BPC: Tensor, batch: Batch, dot: torch.dtype, *, is_backward: bool, copies: bool) -> None:
        self.batch, self.dot = batch, dot
        self.cut = Tiles.of(batch.shape, dot.itemsize, is_backward=is_backward)
        self.rows = Rows.of(y_BPC, self.cut.rows)
        self.grafts = batch.spots.grafts
        self.tiles = -(-self.grafts // self.cut.pack)
        self.columns = self.tiles + (batch.spots.gaps if copies else 0)
        blocks = self.rows.batch * self.rows.blocks
        self.programs = max(1, min(blocks, self.cut.programs // self.tiles))

    def new_aside(self, x: Tensor) -> Tensor:
        """Memory for what is put aside of an output or its gradient, ``[..., G * K]`` and what fills a whole multiple.

        Triton builds a kernel for strides that are multiples of 16 and one for others; with the filling it is one.
        """
        width = self.grafts * self.batch.shape.channels
        return x.new_empty(*x.shape[:-1], -(-width // STRIDE) * STRIDE)

    def as_rows(self, aside: Tensor) -> Tensor:
        """What was put aside, as the kernels walk over it: ``[B, P, at least G * K]``."""
        return aside.view(self.rows.batch, self.rows.positions, aside.shape[-1])

    def hidden_strides(self) -> tuple[int, int, int]:
        """Of the hidden features of all grafts, by sample, position and feature."""
        features = self.grafts * self.batch.shape.width
        return self.rows.positions * features, features, 1

    def constants(self) -> dict[str, Any]:
        """Of the large kernels."""
        shape, cut = self.batch.shape, self.cut
        is_exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
        return {
            "FAMILY": int(shape.family),
            "K": shape.channels,
            "H": max(1, shape.hidden),
            "BEHIND": shape.first_size,
            "READS_INPUT": shape.inputs > 0,
            "PACK": cut.pack,
            "SLOTS": power_of_2(cut.pack),
            "ALIGNMENT": self.batch.spots.alignment,
            "FLAT": self.rows.batch == 1,
            "ROWS": cut.rows,
            "CHANNELS": cut.channels,
            "HIDDEN": cut.hidden,
            "GAP": GAP,
            "STAGES": cut.stages,
            "DOT": DTYPES[self.dot],
            "PRECISION": "ieee" if is_exact else "tf32",
            "FAST": IS_FAST,
            "num_warps": cut.warps,
            "maxnreg": cut.registers,
        }

    def about_settling(self) -> dict[str, Any]:
        """Constants of the small ones."""
        return {
            "K": self.batch.shape.channels,
            "BIT": self.batch.bit,
            "NOTES": NOTES,
            "FLAT": self.rows.batch == 1,
            "ROWS": self.cut.rows,
            "CHANNELS": power_of_2(self.batch.shape.channels),
        }


@on_its_device
def forward(
    y: Tensor, x: Tensor | None, slots_SN: Tensor, batch: Batch, state: Seeds, about: About, *, may_write_over: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """What the host wrote, with all grafts.

    Args:
        y: what the host wrote, ``[..., C]``.
        x: the place's input, if that is what grafts read.
        slots_SN: parameters.
        batch: the grafts.
        state: of the place's seeds.
        about: the pass.
        may_write_over: whether ``y`` may be written over, if that is cheaper.

    Returns:
        The output, which has the memory of ``y`` if that was written over, and what the backward pass needs: what was
        found of each graft, int32 ``[G]``, by how much it counted, float32 ``[G]``, hidden features, if the input was
        read, and what was put aside, if anything was, ``[..., at least G * K]``.
    """
    writes_over = may_write_over and is_regular(y)
    y, out = (y, y.data) if writes_over else beside(y)
    y_BPC, out_BPC = as_rows(y), as_rows(out)
    on = Launch(y_BPC, batch, about.dot, is_backward=False, copies=not writes_over)
    aside = on.new_aside(y) if writes_over else None
    before_BPC = y_BPC if aside is None else on.as_rows(aside)
    hidden = None if x is None else _hidden(x, slots_SN, batch, about.dot)
    flags = torch.empty(on.programs, on.grafts, dtype=torch.int32, device=y.device)
    found, shares = torch.empty_like(flags[0]), torch.empty_like(flags[0], dtype=torch.float32)
    alpha = state.alpha if batch.is_live else None
    forward_kernel[(on.columns * on.programs,)](
        y_BPC,
        y_BPC.stride(),
        out_BPC,
        out_BPC.stride(),
        aside,
        before_BPC.stride(),
        slots_SN,
        slots_SN.stride(0),
        batch.slots,
        batch.spots.first_T,
        batch.spots.width_T,
        batch.seeds,
        alpha,
        hidden,
        on.hidden_strides(),
        flags,
        on.rows,
        on.grafts,
        on.tiles,
        on.columns,
        on.programs,
        **on.constants(),
    )
    settle.settle_forward[(on.grafts,)](
        before_BPC,
        before_BPC.stride(),
        out_BPC,
        out_BPC.stride(),
        batch.spots.first_T,
        batch.seeds,
        alpha,
        state.lifecycle,
        about.fault,
        flags,
        found,
        shares,
        None if x is None else about.x_is_finite,
        on.rows,
        on.grafts,
        on.programs,
        WAS_PUT_ASIDE=writes_over,
        **on.about_settling(),
    )
    return out, [found, shares, hidden, aside]


@on_its_device
def backward(
    grad: Tensor,
    read: Tensor,
    slots_SN: Tensor,
    kept: Sequence[Tensor | None],
    batch: Batch,
    about: About,
    *,
    learns: bool,
    may_write_over: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of what the host wrote, of the slots if these learn, and of the place's input if that was read.

    Args:
        grad: of what :func:`forward` gave.
        read: what grafts have read: ``y``, or the place's input; not needed where it was put aside.
        slots_SN: as there.
        kept: as it gave that.
        batch: the grafts.
        about: the pass.
        learns: whether gradients of the slots are asked for.
        may_write_over: whether ``grad`` may be written over, if that is cheaper.
    """
    is_input, shape = batch.shape.inputs > 0, batch.shape
    found, shares, hidden, was_aside = kept
    assert found is not None
    writes_over = may_write_over and not is_input and is_regular(grad)
    y = read if was_aside is None else was_aside
    if is_input:  # the gradient of what no graft reads is as it was
        grad = grad_y = y = grad.contiguous()
    elif writes_over:
        grad_y = grad.data
    elif was_aside is None:
        y, grad_y = beside(read)
    else:
        grad, grad_y = beside(grad)
    grad_y_BPC = as_rows(grad_y)
    on = Launch(grad_y_BPC, batch, about.dot, is_backward=True, copies=not (is_input or writes_over))
    grad_BPC = grad.reshape(grad_y_BPC.shape)
    y_BPC = y.reshape(grad_y_BPC.shape) if was_aside is None or is_input else on.as_rows(was_aside)
    aside = on.new_aside(grad) if writes_over else None
    before_BPC = grad_BPC if aside is None else on.as_rows(aside)
    skipped = shape.first_size if is_input else 0
    size = shape.num_parameters - skipped if learns else 0
    blocks = -(-size // BLOCK)
    notes = on.programs + blocks + is_input
    flags = torch.empty(notes, on.grafts, dtype=torch.int32, device=grad.device)
    partial = torch.empty(on.programs, on.grafts, size, dtype=torch.float32, device=grad.device)
    grads_SN = torch.zeros_like(slots_SN) if learns else None
    grad_hidden = None if hidden is None else torch.empty_like(hidden)
    backward_kernel[(on.columns * on.programs,)](
        grad_BPC,
        grad_BPC.stride(),
        y_BPC,
        y_BPC.stride(),
        grad_y_BPC,
        grad_y_BPC.stride(),
        aside,
        before_BPC.stride(),
        slots_SN,
        slots_SN.stride(0),
        batch.slots,
        batch.spots.first_T,
        batch.spots.width_T,
        shares,
        hidden,
        on.hidden_strides(),
        grad_hidden,
        flags,
        partial,
        on.rows,
        on.grafts,
        on.tiles,
        on.columns,
        on.programs,
        size,
        LEARNS=learns,
        WAS_PUT_ASIDE=was_aside is not None,
        **on.constants(),
    )
    if grads_SN is not None:
        sum_gradients[(blocks * on.grafts,)](
            partial,
            grads_SN,
            grads_SN.stride(0),
            batch.slots,
            found,
            flags,
            on.grafts,
            on.programs,
            size,
            SKIPPED=skipped,
            TRAINS=settle.TRAINS,
            AT_ONCE=AT_ONCE,
            BLOCK=BLOCK,
        )
    first = None if grad_hidden is None else _first_gradients(grad_hidden, read, batch, flags)
    keeps = torch.empty_like(found) if is_input else None
    settle.settle_backward[(on.grafts,)](
        before_BPC,
        before_BPC.stride(),
        None if is_input else grad_y_BPC,
        grad_y_BPC.stride(),
        batch.spots.first_T,
        batch.seeds,
        about.fault,
        flags,
        found,
        grads_SN,
        0 if grads_SN is None else grads_SN.stride(0),
        batch.slots,
        on.rows,
        on.grafts,
        notes,
        size,
        about.scale,
        keeps,
        SKIPPED=skipped,
        WAS_PUT_ASIDE=writes_over,
        BLOCK=BLOCK,
        **on.about_settling(),
    )
    if first is None or keeps is None or grad_hidden is None:
        return grad_y, grads_SN, None
    keeps_G1 = keeps.bool().unsqueeze(1)
    if grads_SN is not None:
        moves_G1 = keeps_G1 & ((found & settle.TRAINS.value) != 0).unsqueeze(1)
        grads_SN[:, :skipped].index_copy_(0, batch.slots, torch.where(moves_G1, first, 0.0).to(grads_SN.dtype))
    return grad, grads_SN, _input_gradients(grad_hidden, slots_SN, batch, keeps_G1, about.dot).view(read.shape)


def _first(slots_SN: Tensor, batch: Batch, dot: torch.dtype) -> Tensor:
    """The first matrices of all grafts, ``[G, width * inputs]``."""
    return slots_SN.index_select(0, batch.slots)[:, : batch.shape.first_size].to(dot)


def _hidden(x: Tensor, slots_SN: Tensor, batch: Batch, dot: torch.dtype) -> Tensor:
    """Hidden features of all grafts before their activations, ``[M, I]``."""
    shape, bias = batch.shape, None
    if shape.has_bias:
        biases = slots_SN.index_select(0, batch.slots)[:, shape.first_size : shape.first_size + shape.width]
        bias = biases.reshape(-1).to(dot)
    return F.linear(x.reshape(-1, shape.inputs).to(dot), _first(slots_SN, batch, dot).reshape(-1, shape.inputs), bias)


def _first_gradients(grad_MI: Tensor, x: Tensor, batch: Batch, flags: Tensor) -> Tensor:
    """Of the first matrices, ``[G, width * inputs]``; notes which are not finite."""
    first_GN = (grad_MI.mT @ x.reshape(-1, batch.shape.inputs).to(grad_MI.dtype)).view(flags.shape[1], -1)
    torch.logical_not(first_GN.isfinite().all(1), out=flags[-1])
    return first_GN


def _input_gradients(grad_MI: Tensor, slots_SN: Tensor, batch: Batch, keeps_G1: Tensor, dot: torch.dtype) -> Tensor:
    """Of the place's input, without those of grafts at fault."""
    grad_MGH = torch.where(keeps_G1, grad_MI.unflatten(1, (len(keeps_G1), -1)), 0.0)
    first_GN = torch.where(keeps_G1, _first(slots_SN, batch, dot), 0.0)
    return grad_MGH.flatten(1) @ first_GN.reshape(-1, batch.shape.inputs)
