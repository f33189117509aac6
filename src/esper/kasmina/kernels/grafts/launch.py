"""Launches of the kernels of grafts: two for a forward pass, three for a backward pass."""

# G grafts, N parameters of one graft, S slots, B samples, P positions, C channels

import os
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from esper.kasmina.kernels.grafts import settle
from esper.kasmina.kernels.grafts.backward import backward as backward_kernel
from esper.kasmina.kernels.grafts.backward import sum_gradients
from esper.kasmina.kernels.grafts.forward import forward as forward_kernel
from esper.kasmina.kernels.grafts.layout import GAP, Rows, Tiles, as_rows, beside, power_of_2
from esper.kasmina.kernels.grafts.ops import Batch, Seeds

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK, AT_ONCE = 128, 32

NOTES = 1024
"""More than the programs of a graft, and the blocks of its parameters."""

IS_FAST = torch.version.cuda is not None and os.environ.get("TRITON_INTERPRET") != "1"
"""Whether the instructions of NVIDIA's special function unit are there."""


class Launch:
    """How a batch of grafts is laid out over an output.

    Args:
        y_BPC: the output.
        batch: the grafts.
        tiles: of its channels.
    """

    def __init__(self, y_BPC: Tensor, batch: Batch, tiles: Tiles) -> None:
        self.rows = Rows.of(y_BPC, tiles.rows)
        self.grafts = batch.spots.grafts
        self.tiles = -(-self.grafts // tiles.pack)
        self.columns = self.tiles + batch.spots.gaps
        blocks = self.rows.batch * self.rows.blocks
        self.programs = max(1, min(blocks, tiles.programs // self.tiles))
        self.grid = (self.columns * self.programs,)


def forward(
    y: Tensor, slots_SN: Tensor, batch: Batch, state: Seeds, fault: Tensor | None, dot: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What the host wrote, with all grafts.

    Args:
        y, slots_SN, batch, state: as of :func:`~esper.kasmina.kernels.grafts.ops.grown`.
        fault: where faults are raised.
        dot: dtype of products.

    Returns:
        The output, and what the backward pass needs: what was found of each graft, int32 ``[G]``, and by how much it
        counted, float32 ``[G]``.
    """
    tiles = Tiles.of(batch.shape, dot.itemsize, is_backward=False)
    y, out = beside(y)
    y_BPC, out_BPC = as_rows(y), as_rows(out)
    on = Launch(y_BPC, batch, tiles)
    first_T, width_T = batch.spots.first_T, batch.spots.width_T
    flags, found, shares = _scratch(y, (on.programs, on.grafts), (on.grafts,))
    alpha = state.alpha if batch.is_live else None
    strides = y_BPC.stride(), out_BPC.stride()
    forward_kernel[on.grid](
        y_BPC,
        strides[0],
        out_BPC,
        strides[1],
        slots_SN,
        slots_SN.stride(0),
        batch.slots,
        first_T,
        width_T,
        batch.seeds,
        alpha,
        flags,
        on.rows,
        on.grafts,
        on.tiles,
        on.columns,
        on.programs,
        **_constants(batch, on, tiles, dot),
    )
    settle.settle_forward[(on.grafts,)](
        y_BPC,
        strides[0],
        out_BPC,
        strides[1],
        first_T,
        batch.seeds,
        alpha,
        state.lifecycle,
        fault,
        flags,
        found,
        shares,
        on.rows,
        on.grafts,
        on.programs,
        **_about_settling(batch, on, tiles),
    )
    return out, (found, shares)


def backward(
    grad: Tensor,
    y: Tensor,
    slots_SN: Tensor,
    found: Tensor,
    shares: Tensor,
    batch: Batch,
    fault: Tensor | None,
    scale: Tensor | None,
    dot: torch.dtype,
    *,
    learns: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of what the host wrote, and of the slots if these learn.

    Args:
        grad: of what :func:`forward` gave.
        y, slots_SN, batch, fault, dot: as there.
        found: as it gave that.
        shares: as it gave them.
        scale: of the loss, if there is one: then no fault is raised while it is above 1, and gradients that are not
            finite are infinite.
        learns: whether gradients of the slots are asked for.
    """
    tiles = Tiles.of(batch.shape, dot.itemsize, is_backward=True)
    y, grad_y = beside(y)
    y_BPC, grad_y_BPC = as_rows(y), as_rows(grad_y)
    grad_BPC, on = grad.reshape(y_BPC.shape), Launch(y_BPC, batch, tiles)
    size = batch.shape.num_parameters if learns else 0
    blocks = -(-size // BLOCK)
    (flags,) = _scratch(y, (on.programs + blocks, on.grafts))
    partial = torch.empty(on.programs, on.grafts, size, dtype=torch.float32, device=y.device)
    grads_SN = torch.zeros_like(slots_SN) if learns else None
    first_T, width_T = batch.spots.first_T, batch.spots.width_T
    backward_kernel[on.grid](
        grad_BPC,
        grad_BPC.stride(),
        y_BPC,
        y_BPC.stride(),
        grad_y_BPC,
        slots_SN,
        slots_SN.stride(0),
        batch.slots,
        first_T,
        width_T,
        shares,
        flags,
        partial,
        on.rows,
        on.grafts,
        on.tiles,
        on.columns,
        on.programs,
        size,
        LEARNS=learns,
        **_constants(batch, on, tiles, dot),
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
            TRAINS=settle.TRAINS,
            AT_ONCE=AT_ONCE,
            BLOCK=BLOCK,
        )
    settle.settle_backward[(on.grafts,)](
        grad_BPC,
        grad_BPC.stride(),
        grad_y_BPC,
        grad_y_BPC.stride(),
        first_T,
        batch.seeds,
        fault,
        flags,
        found,
        grads_SN,
        0 if grads_SN is None else grads_SN.stride(0),
        batch.slots,
        on.rows,
        on.grafts,
        on.programs + blocks,
        size,
        scale,
        BLOCK=BLOCK,
        **_about_settling(batch, on, tiles),
    )
    return grad_y, grads_SN


def _scratch(y: Tensor, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Flags, int32; what is not written there is not read."""
    found = [torch.empty(shape, dtype=torch.int32, device=y.device) for shape in shapes]
    return [*found, *([found[-1].new_empty(shapes[-1], dtype=torch.float32)] if len(shapes) > 1 else [])]


def _constants(batch: Batch, on: Launch, tiles: Tiles, dot: torch.dtype) -> dict[str, Any]:
    shape = batch.shape
    is_exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return {
        "FAMILY": int(shape.family),
        "K": shape.channels,
        "H": max(1, shape.hidden),
        "PACK": tiles.pack,
        "SLOTS": power_of_2(tiles.pack),
        "ALIGNMENT": batch.spots.alignment,
        "FLAT": on.rows.batch == 1,
        "ROWS": tiles.rows,
        "CHANNELS": tiles.channels,
        "HIDDEN": tiles.hidden,
        "GAP": GAP,
        "STAGES": tiles.stages,
        "DOT": DTYPES[dot],
        "PRECISION": "ieee" if is_exact else "tf32",
        "FAST": IS_FAST,
        "num_warps": tiles.warps,
        "maxnreg": tiles.registers,
    }


def _about_settling(batch: Batch, on: Launch, tiles: Tiles) -> dict[str, Any]:
    return {
        "K": batch.shape.channels,
        "BIT": batch.bit,
        "NOTES": NOTES,
        "FLAT": on.rows.batch == 1,
        "ROWS": tiles.rows,
        "CHANNELS": power_of_2(batch.shape.channels),
    }
