"""How the kernel of grafts cuts up an output: tiles of grafts, and the channels between them."""

# M rows, C channels of the place, G grafts, K channels of a graft

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple, Self

import torch
from torch import Tensor

from esper.kasmina.kernels.grafts.family import Shape

GAP = 128
"""Channels that are copied at once, at most."""

PROGRAMS = 512
"""For all tiles of grafts together: each takes some rows of one tile."""

LARGEST_ALIGNMENT = 16

MOST_PUT_ASIDE = 2 / 3
"""Share of the channels. Of a forward pass that puts aside what grafts read, each of these channels is moved over the
bus three times, of any other each channel of the place twice; of a backward pass it is the same share."""


class Tiles(NamedTuple):
    """How much of an output a program holds at a time; powers of two, as ``tl.dot`` takes them.

    Args:
        rows: of a tile.
        channels: of a tile.
        hidden: features of it.
        pack: grafts in it.
        warps: that share it.
        stages: tiles that are on their way from memory.
        registers: of a thread, at most; None leaves that to the compiler.
        programs: for all tiles of grafts together, about.
    """

    rows: int
    channels: int
    hidden: int
    pack: int
    warps: int
    stages: int
    registers: int | None = None
    programs: int = PROGRAMS

    @classmethod
    def of(cls, shape: Shape, item: int, *, is_backward: bool) -> Self:
        """For grafts of a shape, as an H200 likes it best. Narrow ones share a tile.

        Args:
            shape: of the grafts.
            item: bytes of a number that is multiplied.
            is_backward: for the backward pass, which holds more at a time.
        """
        pack = max(1, min(32 // shape.channels, 64 // max(1, shape.hidden)))
        channels, hidden = (max(16, power_of_2(pack * one)) for one in (shape.channels, shape.hidden))
        is_large = channels * hidden > 512
        if item > 2:
            return cls(16 if is_large else 32, channels, hidden, pack, 4, 2)
        if not is_backward:
            return cls(64, channels, hidden, pack, 4, 3 if is_large else 4)
        return cls(16 if is_large else 64, channels, hidden, pack, 4, 3, None if is_large else 128)


class Rows(NamedTuple):
    """An output as the kernel walks over it: ``batch`` times ``positions`` rows, in ``blocks`` tiles for each."""

    batch: int
    positions: int
    blocks: int

    @classmethod
    def of(cls, y_BPC: Tensor, rows: int) -> Self:
        """In tiles of so many rows."""
        batch, positions, _ = y_BPC.shape
        return cls(batch, positions, -(-positions // rows))


class Spots(NamedTuple):
    """Where the grafts of a group write, and what lies between.

    Args:
        first_T: int32, first channel of each graft, then of each gap.
        width_T: int32, channels of each gap.
        grafts: how many they are.
        gaps: how many they are.
        alignment: a power of two that divides all first channels, and the widths of gaps.
    """

    first_T: Tensor
    width_T: Tensor
    grafts: int
    gaps: int
    alignment: int

    @classmethod
    def of(cls, firsts: Sequence[int], width: int, num_channels: int, device: torch.device) -> Self:
        """Of grafts of one width, by their first channels."""
        ends = [0, *(first + width for first in sorted(firsts))]
        runs = zip(ends, [*sorted(firsts), num_channels], strict=True)
        gaps = [(start, min(GAP, end - start)) for begin, end in runs for start in range(begin, end, GAP)]
        first_T = torch.tensor([*firsts, *(start for start, _ in gaps)], dtype=torch.int32, device=device)
        width_T = torch.tensor([size for _, size in gaps] or [0], dtype=torch.int32, device=device)
        alignment = gcd(LARGEST_ALIGNMENT, *firsts, *(number for gap in gaps for number in gap))
        return cls(first_T, width_T, len(firsts), len(gaps), alignment)


def power_of_2(number: int) -> int:
    """The smallest that is not below it."""
    return 1 << max(0, number - 1).bit_length()


def as_rows(y: Tensor) -> Tensor:
    """``[..., C]`` as a view ``[B, P, C]``, with ``B = 1`` where the rows lie one after the other."""
    if y.dim() < 3:
        return y.view(1, -1, y.shape[-1])
    y_BPC = y.flatten(1, -2)
    is_even = y_BPC.stride(0) == y_BPC.shape[1] * y_BPC.stride(1)
    return y_BPC.flatten(0, 1).unsqueeze(0) if is_even else y_BPC


def is_regular(y: Tensor) -> bool:
    """Whether :func:`as_rows` is a view of a tensor."""
    return all(y.stride(axis) == y.shape[axis + 1] * y.stride(axis + 1) for axis in range(1, y.dim() - 2))


def beside(y: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor, as it is or contiguous, and an empty one like it; :func:`as_rows` is a view of both."""
    empty = torch.empty_like(y)
    if is_regular(y) and empty.stride() == y.stride():
        return y, empty
    y = y.contiguous()
    return y, torch.empty_like(y)
