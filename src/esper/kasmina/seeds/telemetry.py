"""What the seeds of a place sense: sums per channel, reduced to seeds when a report is asked for.

One training forward pass in eight looks at a bounded number of the place's output vectors, and a hook on the output at
the loss gradient of the same vectors. Nothing here knows of seeds until :meth:`Telemetry.report`, so any chunking is a
sum over segments. Values are summed as deviations from a pivot of their channel: with plain squares in float32, a
channel of mean 30 and standard deviation 0.01 gets a negative variance.

One pass in eight, because a look is some thirty small operations where no kernel does them, and behind a large product
each of them finds cold caches, however few vectors are looked at. ``esper bench --only dormant`` tells what that costs.
"""

# N sampled vectors, B samples, P positions, C channels

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch._library.effects import EffectType

from esper.contracts.reports import SeedReport
from esper.kasmina.kernels.capture import is_capturing
from esper.kasmina.kernels.telemetry.ops import kernel_for
from esper.kasmina.kernels.telemetry.reference import is_due, sampled
from esper.kasmina.numbered import by_number, numbered
from esper.kasmina.seeds.looks import LOOKS
from esper.kasmina.seeds.seed_state import KeepsDtype

SHARE = 0.125
"""Of the forward passes that are looked at."""

COMPILES_HOOKS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Older compilers put an autograd function in the hook's place, which an in-place activation behind it cannot stand.
There gradients are not sensed in a compiled model."""


class Telemetry(KeepsDtype):
    """Sums over the output vectors of one place, all in float32 whatever comes in; 6 numbers per channel.

    A window goes from :meth:`reset` to :meth:`reset`; it counts exactly up to 2**24 vectors. The pivots are the means
    over the first vectors of the window. A vector with a non-finite entry is left out, and so is a gradient.

    The product with the next channel gives the correlation of neighbours. Pairs of neighbours do not depend on the
    chunking; those across a border of two chunks are left out of the report.

    Args:
        bounds: first channel of every seed's chunk, and the end; rising from 0.
        rows: vectors looked at in one forward pass, at most; 0 senses nothing. From 32768 values on, torch shares the
            work among its threads, and a look waits until all have a core.
        device: of the host.
    """

    sums: Tensor  # deviation [C], its square [C], inactive [C], product with the next channel [C - 1], vectors [1]
    pivot: Tensor  # [C]
    gradient: Tensor  # sum of squares [C]
    gradient_steps: Tensor  # vectors, backward passes, sum of their norms, sum of the squared norms

    def __init__(self, bounds: Sequence[int], rows: int, device: torch.device) -> None:
        super().__init__()
        self.bounds, self.rows = tuple(bounds), rows
        self.threshold: float | None = None
        self.turns = [0, 0]  # forward passes of this window: those repeated in a backward pass, and first ones
        self._held: list[Tensor] | None = None
        self._number = numbered(self)
        channels = self.bounds[-1]
        for name, size in {"sums": 4 * channels, "pivot": channels, "gradient": channels, "gradient_steps": 4}.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float32, device=device))
        # First passes of a CUDA graph in this window, and room for a kernel; no checkpoint holds them.
        self.turn = torch.zeros(2, dtype=torch.int64, device=device)

    def observe(self, y: Tensor, axis: int) -> None:
        """Look at the output of a training forward pass if it is its turn, and later at the gradient.

        Changes neither, draws no random number, never waits for the device. The first pass of a window has its turn,
        then an eighth of all, in no period that a module called several times per step could fall in with.

        A forward pass that runs inside a backward pass repeats one that was counted (gradient checkpointing): its
        vectors are left out. Its gradient is not: with ``use_reentrant=True`` it is the only one, and with
        ``use_reentrant=False`` none arrives there.

        Args:
            y: ``[B, C, ...]`` or ``[..., C]``.
            axis: of the channels, 1 or -1.
        """
        if torch.compiler.is_compiling():
            if self.rows and y.numel():
                LOOKS.add(sampled(y.detach(), axis, self.rows), self._number)
            is_tapped, tap = COMPILES_HOOKS, partial(_tap, axis, self._number)
        else:
            is_tapped, tap = self.look(y, axis), partial(self._tap, axis)
        if is_tapped and y.requires_grad and not y.is_leaf:  # the hooks of a leaf stay and would add up
            y.register_hook(tap)

    def look(self, y: Tensor, axis: int) -> bool:
        """Look at an output if it is its turn, and tell whether it was.

        Args:
            y: the output.
            axis: of the channels.
        """
        is_first_pass = torch._C._current_graph_task_id() == -1
        turn = self.turns[is_first_pass]
        self.turns[is_first_pass] = turn + 1
        if self.rows == 0 or not self._can_read(y, axis):
            return False
        if not (is_due(turn, SHARE) or _asks_device(y)):
            return False
        if is_first_pass and self._held is not None:
            self._held.append(sampled(y.detach(), axis, self.rows).clone())
        elif is_first_pass:
            self._look(y.detach(), axis)
        return True

    def feel(self, gradient: Tensor, axis: int) -> None:
        """Look at a gradient of a compiled pass, if it was the turn of the last one.

        Args:
            gradient: of an output.
            axis: of the channels.
        """
        is_looked_at = is_due(self.turns[True] - 1, SHARE) or _asks_device(gradient)
        if is_looked_at and self.rows and self._can_read(gradient, axis):
            self._tap(axis, gradient)

    def set_threshold(self, value: float | None) -> None:
        """At or below which value a channel counts as inactive: what the activation that follows does not let pass.

        A new threshold starts a new window, unless what was looked at is still held.

        Args:
            value: 0 before ReLU, -3 before GELU or SiLU, None if nothing is known.
        """
        if value != self.threshold:
            self.threshold = value
            if self._held is None:
                self.reset()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Vectors that are looked at inside are summed at its end, by the threshold that is known then."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for vectors in held:
                self._look(vectors, -1)

    def readings(self) -> Tensor:
        """All sums of this window, ``[6 C + 4]`` on the device."""
        return torch.cat((self.sums, self.gradient, self.gradient_steps))

    @np.errstate(over="ignore", invalid="ignore")
    def report(self, gradient_scale: float = 1.0, readings: Tensor | None = None) -> SeedReport:
        """What the seeds have sensed in this window.

        ``mean_abs_correlation`` is the mean absolute Pearson correlation of the ``K - 1`` pairs of neighbouring
        channels in a chunk of ``K``; a channel that does not vary correlates with none. Variances are those of the
        population. Sums that are not finite are told as they are.

        Args:
            gradient_scale: what the loss was multiplied by, such as a GradScaler's scale.
            readings: its :meth:`readings` on the host; None waits for the device.
        """
        channels = self.bounds[-1]
        everything = (self.readings().cpu() if readings is None else readings).double().numpy()
        sums, gradient, steps = np.split(everything, (4 * channels, 5 * channels))
        vectors, gradients = sums[-1], steps[0]
        firsts, ends = np.asarray(self.bounds[:-1]), np.asarray(self.bounds[1:])
        widths = ends - firsts
        variance = inactive = correlation = norm = None
        if vectors:
            mean, square, inactive_rate = np.split(sums[: 3 * channels] / vectors, 3)
            variance_C = np.maximum(square - mean**2, 0.0)
            variance = (np.add.reduceat(variance_C, firsts) / widths).tolist()
            if self.threshold is not None:
                inactive = (np.add.reduceat(inactive_rate, firsts) / widths).tolist()
            covariance = sums[3 * channels : -1] / vectors - mean[:-1] * mean[1:]
            scale = np.sqrt(variance_C[:-1] * variance_C[1:])
            pairs = np.zeros(channels)
            np.divide(np.abs(covariance), scale, out=pairs[:-1], where=scale > 0)
            pairs[ends - 1] = 0.0
            correlation = (np.add.reduceat(np.minimum(pairs, 1.0), firsts) / np.maximum(widths - 1, 1)).tolist()
        if gradients:
            mean_square = np.add.reduceat(gradient, firsts) / (widths * gradients)
            norm = (np.sqrt(mean_square) / gradient_scale).tolist()
        return SeedReport(variance, inactive, correlation, norm)

    def gradient_noise(self, readings: Tensor | None = None) -> float | None:
        """Standard deviation of the place's gradient norm from one backward pass to the next, relative to its mean.

        The norm is the root mean square over the sampled vectors and all channels.

        Args:
            readings: as in :meth:`report`.

        Returns:
            None before the second backward pass of the window, and where no gradient arrives.
        """
        _, passes, norms, squares = (self.gradient_steps if readings is None else readings[-4:]).tolist()
        if passes < 2 or norms == 0:
            return None
        mean = norms / passes
        variance = max(squares / passes - mean**2, 0.0) * passes / (passes - 1)
        return float(variance**0.5 / mean)

    def reset(self) -> None:
        """Start a new window."""
        self.turns = [0, 0]
        for tensor in (*self.buffers(), self.turn):
            tensor.zero_()

    def rebound(self, bounds: Sequence[int]) -> None:
        """Report to other chunks of the same channels. What was summed stays."""
        assert bounds[-1] == self.bounds[-1]
        self.bounds = tuple(bounds)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.turn = self.turn.to(self.sums.device)
        return self

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.turns)

    def set_extra_state(self, state: Tensor) -> None:
        turns: list[int] = state.tolist()
        if len(turns) != 2:
            raise ValueError(f"telemetry counts two kinds of forward passes, not {len(turns)}")
        self.turns = turns

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._number = numbered(self)

    def _can_read(self, y: Tensor, axis: int) -> bool:
        """Whether a tensor has real channels where they are looked for: not one without a batch, nor a scalar."""
        if y.numel() == 0 or y.is_complex() or y.dim() <= max(axis, 0):
            return False
        return y.shape[axis] == self.bounds[-1]

    def _look(self, y: Tensor, axis: int) -> None:
        share = SHARE if _asks_device(y) else None
        kernel_for(y).look(y, axis, self.rows, self.threshold, self.sums, self.pivot, self.turn, share)

    def _tap(self, axis: int, gradient: Tensor | None) -> None:
        if gradient is None:  # autograd's word for a zero that it did not make
            return
        share, gradient = SHARE if _asks_device(gradient) else None, gradient.detach()
        kernel_for(gradient).feel(gradient, axis, self.rows, self.gradient, self.gradient_steps, self.turn, share)


def _asks_device(tensor: Tensor) -> bool:
    """Whether it is a CUDA graph that will have to ask whose turn it is."""
    return tensor.is_cuda and is_capturing()


def _tap(axis: int, number: int, gradient: Tensor | None) -> None:
    if gradient is not None:
        torch.ops.esper.feel(gradient.detach(), axis, number)


@torch.library.custom_op("esper::look", mutates_args=())
def _look(y: Tensor, axis: int, number: int) -> None:
    by_number(number).look(y, axis)


@torch.library.custom_op("esper::feel", mutates_args=())
def _feel(gradient: Tensor, axis: int, number: int) -> None:
    by_number(number).feel(gradient, axis)


for _operator in (_look, _feel):  # a compiler leaves out what gives nothing, unless it is told that it does something
    _operator.register_fake(lambda tensor, axis, number: None)
    _operator.register_effect(EffectType.ORDERED)
