"""Where the channels of a place lie, and how its input is brought to the positions of its output.

Grafts see ``[batch, *positions, channels]``, whatever the host does. Nothing here looks at shapes to decide what to do,
so that the same methods work on tensors and, for export, on ``torch.fx`` proxies.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch.nn.functional as F
from torch import Tensor

MAX_FLAT_FEATURES = 256
"""Features that a pooled and flattened input may have, unless it has more channels than that."""

Adapter = Literal["same", "pool", "flatten", "spread"]

_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Geometry:
    """How one place lies in the tensors of its host.

    Args:
        input_axis: channel axis of the input, 1 or -1.
        output_axis: channel axis of the output, 1 or -1.
        is_batch_first: whether the batch is axis 0; else it is axis 1, behind the tokens.
        adapter: what brings the input to the output's positions: ``"same"`` has them already; ``"pool"`` averages down
            to them (a strided host); ``"flatten"`` averages down to ``grid`` and makes features of it, where the output
            has no positions; ``"spread"`` shows the same input to all positions, where the input has none.
        positions: axes of positions of the output; for ``"pool"`` and ``"spread"``.
        grid: for ``"flatten"``.
    """

    input_axis: int = -1
    output_axis: int = -1
    is_batch_first: bool = True
    adapter: Adapter = "same"
    positions: int = 0
    grid: tuple[int, ...] = ()

    def channels_last(self, y: Tensor) -> Tensor:
        """The place's output as ``[batch, *positions, channels]``, a view."""
        return self._to_last(y, self.output_axis)

    def restore(self, y: Tensor) -> Tensor:
        """Inverse of :meth:`channels_last`."""
        if not self.is_batch_first:
            y = y.transpose(0, 1)
        return y.movedim(-1, 1) if self.output_axis == 1 else y

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """The place's input as what grafts read: ``[batch, *positions of y, features]``.

        Args:
            x: the input as the host got it.
            y: the output with its channels last.
        """
        x = self._to_last(x, self.input_axis)
        lengths = [y.shape[axis] for axis in range(1, 1 + self.positions)]
        if self.adapter == "pool":
            return _POOL[self.positions](x.movedim(-1, 1), lengths).movedim(1, -1)
        if self.adapter == "flatten":
            return _POOL[len(self.grid)](x.movedim(-1, 1), self.grid).flatten(1)
        if self.adapter == "spread":
            for _ in lengths:
                x = x.unsqueeze(1)
            return x.expand(-1, *lengths, -1)
        return x

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
