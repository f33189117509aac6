"""Where the channels of a place lie, and how what a graft makes of its input comes to the positions of its output.

Grafts see ``[batch, *positions, channels]``, whatever the host does. Where the host reduces positions, a graft works at
those of the input and its delta is averaged down to the output's, so that a convolution sees every position. Nothing
here looks at shapes to decide what to do, so that the same methods work on tensors and, for export, on ``torch.fx``
proxies.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch.nn.functional as F
from torch import Tensor

from esper.contracts.reports import Layout

MAX_FLAT_FEATURES = 256
"""Features that a pooled and flattened input, or a patch, may have, unless it has more channels than that."""

Adapter = Literal["same", "pool", "flatten", "spread", "patches"]

_CHUNK_LAYOUTS: dict[int, Layout] = {1: "signal", 2: "image"}
_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Geometry:
    """How one place lies in the tensors of its host.

    Args:
        input_axis: channel axis of the input, 1 or -1.
        output_axis: channel axis of the output, 1 or -1.
        is_batch_first: whether the batch is axis 0; else it is axis 1, behind the tokens.
        adapter: what brings input and output together: ``"same"`` has the same positions; ``"pool"`` averages a
            graft's delta down to the output's positions (a strided host), or over all of them where the output has
            none (a pooled head); ``"flatten"`` averages the input down to ``grid`` and makes features of it, where the
            output has no positions and the host shares no weights along those of the input; ``"spread"`` shows the
            same input to all positions, where the input has none; ``"patches"`` gives each token its patch of an image
            as features, row by row.
        positions: axes of positions of the output; for ``"pool"`` and ``"spread"``.
        grid: for ``"flatten"``.
        cells: for ``"patches"``: features of a patch along each side, for every channel.
        cell: values along each side that are averaged for one of them.
    """

    input_axis: int = -1
    output_axis: int = -1
    is_batch_first: bool = True
    adapter: Adapter = "same"
    positions: int = 0
    grid: tuple[int, ...] = ()
    cells: int = 1
    cell: int = 1

    def channels_last(self, y: Tensor) -> Tensor:
        """The place's output as ``[batch, *positions, channels]``, a view."""
        return self._to_last(y, self.output_axis)

    def restore(self, y: Tensor) -> Tensor:
        """Inverse of :meth:`channels_last`."""
        if not self.is_batch_first:
            y = y.transpose(0, 1)
        return y.movedim(-1, 1) if self.output_axis == 1 else y

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """The place's input as what grafts read, ``[batch, *positions, features]``: at the positions of ``x`` for
        ``"pool"``, else at those of ``y``.

        Args:
            x: the input as the host got it.
            y: the output with its channels last.
        """
        x = self._to_last(x, self.input_axis)
        lengths = [y.shape[axis] for axis in range(1, 1 + self.positions)]
        if self.adapter == "flatten":
            return _POOL[len(self.grid)](x.movedim(-1, 1), self.grid).flatten(1)
        if self.adapter == "patches":
            image = F.avg_pool2d(x.movedim(-1, 1), self.cell)
            return F.pixel_unshuffle(image, self.cells).flatten(2).transpose(1, 2)
        if self.adapter == "spread":
            for _ in lengths:
                x = x.unsqueeze(1)
            return x.expand(-1, *lengths, -1)
        return x

    def settle(self, delta: Tensor, y: Tensor) -> Tensor:
        """What a graft made of :meth:`read`, ``[batch, *positions, channels]``, at the positions of ``y``.

        Args:
            delta: the graft's delta.
            y: the output with its channels last.
        """
        if self.adapter != "pool":
            return delta
        if not self.positions:
            return delta.flatten(1, -2).mean(1)
        lengths = [y.shape[axis] for axis in range(1, 1 + self.positions)]
        return _POOL[self.positions](delta.movedim(-1, 1), lengths).movedim(1, -1)

    def chunk_layout(self, layout: Layout) -> Layout:
        """What lies around the channels of the output, where ``layout`` lies around what grafts read."""
        if self.adapter != "pool":
            return layout
        return _CHUNK_LAYOUTS.get(self.positions, "features") if self.output_axis == 1 else "features"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"grid": list(self.grid)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`."""
        return cls(**saved | {"grid": tuple(saved["grid"])})

    def _to_last(self, tensor: Tensor, axis: int) -> Tensor:
        if axis == 1:
            tensor = tensor.movedim(1, -1)
        return tensor if self.is_batch_first else tensor.transpose(0, 1)


def flat_grid(channels: int, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The finest grid whose features, ``channels * prod(grid)``, stay within the bound; at least one position each."""
    bound = max(MAX_FLAT_FEATURES, channels)
    grid = list(lengths)
    while channels * math.prod(grid) > bound:
        longest = grid.index(max(grid))
        grid[longest] = -(-grid[longest] // 2)
    return tuple(grid)


def patch_side(lengths: tuple[int, ...], tokens: int) -> int | None:
    """Side of the square patches that cut an image of these sides into so many tokens; None if none do."""
    side = math.isqrt(math.prod(lengths) // max(1, tokens))
    is_cut = side > 0 and all(length % side == 0 for length in lengths)
    return side if is_cut and math.prod(length // side for length in lengths) == tokens else None


def patch_cells(channels: int, side: int) -> int:
    """The most cells along each side of a patch, a divisor of it, whose features stay within the bound."""
    bound = max(MAX_FLAT_FEATURES, channels)
    return max(cells for cells in range(1, side + 1) if side % cells == 0 and channels * cells * cells <= bound)
