"""The mean of a model's weights over the last part of a window or an arm: what is judged in place of its last step.

While the learning rate is high, a single step's held-out loss swings by more than most grafts are worth. The mean of
the weights along the way is about what they come to once the rate has decayed (Izmailov et al., "Averaging weights
leads to wider optima and better generalization", UAI 2018), so that twin and arms are compared by that. Batch norms
take their running statistics anew then (section 3.2 there): those along the way are not those of the mean weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from esper.shards import own

TAIL = 1 / 4
"""Share of the steps over which the mean is taken, at the end."""

POINTS = 10
"""At most so many steps among them are taken in; and so many batches by batch norms."""

MARKS = 4
"""At so many places of a window is its mean kept, the end among them."""


def marks(steps: int) -> list[int]:
    """Where means of a window of ``steps`` end: at its end, and at most three times where the next one begins.

    So only one of them gathers at a time. Rising; about 42, 56, 75 and 100 % of the steps.
    """
    found = [steps]
    while len(found) < MARKS and found[0] > _tail(found[0]):
        found.insert(0, found[0] - _tail(found[0]))
    return found


def _tail(steps: int) -> int:
    return max(1, int(TAIL * steps))


@dataclass
class WeightMean:
    """A running mean of all parameters, live grafts among them.

    Attributes:
        tensors: the mean by name, float32 or wider, on the device of the parameter.
        count: how many steps were taken in.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def after_step(self, model: nn.Module, done: int, steps: int) -> None:
        """Take in the weights, if this step is one of the points.

        Args:
            model: as it is after the step.
            done: steps so far, this one among them.
            steps: of the whole window or arm.
        """
        tail = _tail(steps)
        if 0 <= steps - done < tail and (steps - done) % -(-tail // POINTS) == 0:
            self._take_in(model)

    @torch.no_grad()
    def _take_in(self, model: nn.Module) -> None:
        self.count += 1
        for name, parameter in _weights(model):
            mean = self.tensors.get(name)
            if mean is None or mean.shape != parameter.shape:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                self.tensors[name] = parameter.to(dtype, copy=True)
            else:
                mean = self.tensors[name] = mean.to(parameter.device)
                mean.lerp_(parameter.to(mean.dtype), 1 / self.count)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Let the model have the mean in place of its weights; without any point it keeps its own."""
        with torch.no_grad():
            weights = list(_weights(model)) if self.count else []
            kept = [(weight, weight.clone(), self.tensors[name]) for name, weight in weights]
            try:
                for weight, _, mean in kept:
                    weight.copy_(mean)
                yield
            finally:
                for weight, before, _ in kept:
                    weight.copy_(before)

    def to_dict(self) -> dict[str, Any]:
        """The mean as a nested state; ``WeightMean(**saved)`` is the inverse."""
        return {"tensors": self.tensors, "count": self.count}


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters; of those that are shared, this rank's part."""
    return ((name, own(parameter.detach())) for name, parameter in model.named_parameters())


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Those that learn running statistics now."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]


@contextmanager
def renewing(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Forward passes inside give batch norms new statistics, the mean over these passes; all else is in eval mode."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def unchanged(norms: list[_BatchNorm]) -> Iterator[None]:
    """Whatever happens inside, batch norms have their statistics of before afterwards."""
    own = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, saved in own:
                buffer.copy_(saved)
