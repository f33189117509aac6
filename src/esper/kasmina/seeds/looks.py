"""When a compiled pass looks at what a place has written: once the layer behind it has read that.

torch's compiler fuses what follows a layer (an activation) into one kernel, and computes it again in the backward pass.
Something that it cannot fuse, like a look, ends that for all that comes later: then it keeps the activation's gradient,
in float32, beside the output. So looks wait until the next place is called, or the model ends.
"""

# N sampled vectors, C channels

import torch
from torch import Tensor


class Looks:
    """Looks that wait; none outside a compiled pass of the whole model."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, int]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether looks may wait."""
        return self._waiting is not None

    def open(self) -> None:
        """A pass begins."""
        self._waiting = []

    def close(self) -> None:
        """It ends: nothing waits any more."""
        self._flush()
        self._waiting = None

    def add(self, x_NC: Tensor, number: int) -> None:
        """A look of the telemetry with that number, at vectors; those before it wait no longer."""
        self._flush()
        if self._waiting is None:
            _look(x_NC, number)
        else:
            self._waiting.append((x_NC, number))

    def _flush(self) -> None:
        for x_NC, number in self._waiting or ():
            _look(x_NC, number)
        if self._waiting:
            self._waiting.clear()


def _look(x_NC: Tensor, number: int) -> None:
    torch.ops.esper.look(x_NC, -1, number)


LOOKS = Looks()
"""Of the pass that is being compiled."""
