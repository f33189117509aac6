"""What seeds sense, in plain PyTorch: sums per channel over a few of the output's vectors."""

# N sampled vectors, B samples, P positions, C channels

from typing import NamedTuple, Self

import torch
from torch import Tensor

LARGEST_NORM = 1e15
"""A vector that is not below counts as non-finite. The squares of 2**24 vectors still fit into float32."""

GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64
"""In units of 2**-64, as int64; its multiples modulo 1 are spread most evenly (Knuth, TAOCP 3, section 6.4)."""


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
    """Add some vectors of an output to what was summed.

    Args:
        y: ``[B, C, ...]`` or ``[..., C]``, of any floating dtype.
        axis: of the channels, 1 or -1.
        rows: vectors that are looked at, at most.
        threshold: at or below which a value is inactive, if there is one.
        sums: float32 ``[4 C]``, in place: deviations from the pivots, their squares, inactive values, products with the
            next channel (one fewer), vectors.
        pivot: float32 ``[C]``, in place, set by the first vectors.
        turn: int64 ``[2]``, in place: passes so far, and room for a kernel.
        share: of the passes, to be asked on the device whether it is this one's turn; None if it is.
    """
    x_NC, usable_N1 = _with_nan(sampled(y, axis, rows))
    vectors = usable_N1.sum()
    deviation_NC = (x_NC - pivot).nan_to_num_(0.0)
    sum_C = deviation_NC.sum(0)
    shift_C = sum_C * ((sums[-1] == 0) / vectors.clamp(min=1))  # zero but for the first vectors of a window
    is_due = 1.0 if share is None else _due_on_device(turn[0], share)
    pivot.add_(shift_C * is_due)
    deviation_NC = deviation_NC.addcmul_(usable_N1, shift_C, value=-1)
    sum_C = sum_C - vectors * shift_C
    product_C = (deviation_NC[:, :-1] * deviation_NC[:, 1:]).sum(0)
    square_C = deviation_NC.square_().sum(0)
    inactive_C = torch.zeros_like(sum_C) if threshold is None else x_NC.le_(threshold).sum(0)
    sums.add_(torch.cat((sum_C, square_C, inactive_C, product_C, vectors.view(1))) * is_due)
    if share is not None:
        turn[0] += 1


def feel(
    gradient: Tensor,
    axis: int,
    rows: int,
    squares: Tensor,
    steps: Tensor,
    turn: Tensor,
    share: float | None = None,
) -> None:
    """Add some vectors of an output's gradient to what was summed.

    Args:
        gradient: of the output.
        axis: of the channels, 1 or -1.
        rows: vectors that are looked at, at most.
        squares: float32 ``[C]``, in place.
        steps: float32 ``[4]``, in place: vectors, backward passes, their norms, the squares of these.
        turn: int64 ``[2]``: forward passes so far, this one's among them.
        share: as in :func:`look`.
    """
    x_NC, usable_N1 = _with_nan(sampled(gradient, axis, rows))
    vectors = usable_N1.sum()
    square_C = x_NC.nan_to_num_(0.0).square_().sum(0)
    is_due = 1.0 if share is None else _due_on_device(turn[0] - 1, share)
    squares.add_(square_C * is_due)
    square = square_C.sum() / (vectors.clamp(min=1) * square_C.numel())
    steps.add_(torch.stack((vectors, vectors.clamp(max=1), square.sqrt(), square)) * is_due)


class Spread(NamedTuple):
    """Which vectors of ``[B, P, C]`` are looked at: evenly over the samples first, then over the positions.

    Args:
        every: so many samples, one is looked at.
        stretches: of the positions; each sample gives one vector of each.
        offsets: within a stretch; sample after sample takes the next one.
        length: of a stretch.
        step: between offsets.
        vectors: how many they are.
    """

    every: int
    stretches: int
    offsets: int
    length: int
    step: int
    vectors: int

    @classmethod
    def over(cls, batch: int, positions: int, rows: int) -> Self:
        """At most ``rows`` vectors. A compiler can follow it with symbolic sizes."""
        samples = min(batch, rows)
        stretches = min(positions, rows // samples)
        length = positions // stretches
        step = -(-length // samples)
        offsets = length // step
        return cls(batch // samples, stretches, offsets, length, step, samples // offsets * offsets * stretches)


def sampled(y: Tensor, axis: int, rows: int) -> Tensor:
    """At most ``rows`` vectors of channels, float32 ``[N, C]``, as :class:`Spread` has them; no random state.

    The positions differ from sample to sample. A compiler fuses all of it.
    """
    if y.dim() <= 2:
        y_BC = y.view(-1, y.shape[-1])
        samples = min(y_BC.shape[0], rows)
        every = y_BC.shape[0] // samples
        return y_BC[: samples * every].unflatten(0, (samples, every))[:, 0].float()
    y_BPC = with_positions(y, axis)
    spread = Spread.over(y_BPC.shape[0], y_BPC.shape[1], rows)
    index_N = torch.arange(spread.vectors, device=y.device)
    sample_N = index_N // spread.stretches
    position_N = index_N % spread.stretches * spread.length + sample_N % spread.offsets * spread.step + spread.step // 2
    return y_BPC[sample_N * spread.every, position_N].float()


def with_positions(y: Tensor, axis: int) -> Tensor:
    """An output as ``[B, P, C]``, a view where its strides allow that.

    Args:
        y: ``[B, C, ...]`` or ``[..., C]``.
        axis: of the channels, 1 or -1.
    """
    if y.dim() <= 2:
        return y.view(-1, 1, y.shape[-1])
    return y.flatten(2).transpose(1, 2) if axis == 1 else y.flatten(1, -2)


def is_due(turn: int, share: float) -> bool:
    """Whether a pass is looked at: a share of all is, in no period, and the first one always.

    Args:
        turn: passes before it.
        share: of the passes.
    """
    return (turn * GOLDEN_RATIO >> 32) & 0xFFFFFFFF < share * 2**32


def _due_on_device(turn: Tensor, share: float) -> Tensor:
    return (((turn * GOLDEN_RATIO) >> 32) & 0xFFFFFFFF).lt(share * 2**32).float()


def _with_nan(x_NC: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors, those that do not count all NaN, and which of them count, in {0.0, 1.0} ``[N, 1]``.

    A comparison in place gives numbers, and a product with NaN takes the place of a select: on the CPU both are several
    times faster than what they stand for.
    """
    usable_N1 = torch.linalg.vector_norm(x_NC, dim=1, keepdim=True).lt_(LARGEST_NORM)
    return x_NC * (usable_N1 / usable_N1), usable_N1
