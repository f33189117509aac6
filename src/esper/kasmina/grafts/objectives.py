"""What a graft that trains in isolation is asked to do; pure functions over samples.

Legend: R samples, ... positions, X features read, K channels of the chunk.

A graft that adds ``delta`` to its chunk changes the loss by ``<g, delta>`` to first order, with ``g`` the loss gradient
at the chunk. ``pseudo_residual`` fits ``-g``, the steepest descent in function space (Friedman, "Greedy function
approximation: a gradient boosting machine", Annals of Statistics 29, 2001, algorithm 1). ``reconstruction`` looks at
no loss: the graft learns to reproduce the chunk from input of which a part is hidden (Vincent et al., "Extracting and
composing robust features with denoising autoencoders", ICML 2008, section 2.3), which makes features, not progress:

    Where the host is stationary in its own weights, the sum over the batch of ``g x^T`` and of ``g`` is zero. Then
    ``<g, A x + b>`` is zero for every A and b: neither a linear graft on the layer's own input, nor a reconstruction
    of a linear layer's output, gains anything to first order.

Therefore held-out samples judge both by the same measure, the pseudo-residual.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from esper.kasmina.grafts.guard import select_G
from esper.kasmina.grafts.strategies import TINY

STEP = 0.1
"""Length of the pseudo-residual: root mean square, relative to that of the place's output. A gradient has a direction
but no length in units of activations, and a graft that moves its chunk by a tenth stays where first order holds."""

HIDDEN_SHARE = 0.3
"""Share of the input that is hidden in ``reconstruction``."""


def pseudo_residual(gradient: Tensor, output_power: Tensor) -> Tensor:
    """What to add to the chunk: a step of length ``STEP`` down the loss.

    Args:
        gradient: ``[R, ..., K]``, in units of its root mean square.
        output_power: scalar, mean square of the place's output.
    """
    return -STEP * output_power.sqrt() * gradient


def corrupt(x: Tensor, generator: Generator) -> Tensor:
    """``x`` with a share of its values hidden, drawn anew for every value."""
    hidden = torch.rand(x.shape, generator=generator, dtype=torch.float32, device=x.device) < HIDDEN_SHARE
    return x.masked_fill(hidden, 0.0)


def relative_error(delta: Tensor, target: Tensor, counts_R: Tensor) -> Tensor:
    """Squared error relative to the target's mean square, over the samples that count; scalar."""
    error = select_G(counts_R, delta - target).square().sum()
    return error / select_G(counts_R, target).square().sum().clamp(min=TINY)


def first_order_gain(gradient: Tensor, delta: Tensor) -> Tensor:
    """By how much the loss falls to first order when ``delta`` is added: ``-<gradient, delta>``; scalar."""
    return -(gradient * delta).sum()


Task = Callable[[Tensor, Tensor, Tensor, Generator], tuple[Tensor, Tensor]]
"""``(x, chunk, residual, generator) -> (input, target)`` of a training step."""

OBJECTIVES: dict[str, Task] = {
    "pseudo_residual": lambda x, chunk, residual, generator: (x, residual),
    "reconstruction": lambda x, chunk, residual, generator: (corrupt(x, generator), chunk),
}
