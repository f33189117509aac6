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
        self._passes: list[list[tuple[Tensor, int]]] = []  # a list alone: dynamo forgets what an attribute was set to

    @property
    def is_open(self) -> bool:
        """Whether looks may wait."""
        return len(self._passes) > 0

    def open(self) -> None:
        """A pass begins."""
        self._passes.append([])

    def close(self) -> None:
        """It has ended, or failed: nothing waits any more."""
        self._passes.pop()

    def add(self, x_NC: Tensor, number: int) -> None:
        """A look of the telemetry with that number, at vectors; those before it wait no longer."""
        self.flush()
        if self._passes:
            self._passes[-1].append((x_NC, number))
        else:
            _look(x_NC, number)

    def flush(self) -> None:
        """Look at what waits."""
        for waiting in self._passes:
            for x_NC, number in waiting:
                _look(x_NC, number)
            waiting.clear()


def _look(x_NC: Tensor, number: int) -> None:
    torch.ops.esper.look(x_NC, -1, number)


LOOKS = Looks()
"""Of the pass that is being compiled."""
