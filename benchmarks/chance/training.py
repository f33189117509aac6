"""AdamW whose weights may be of different ages (Kingma and Ba, "Adam", ICLR 2015; Loshchilov and Hutter, ICLR 2019)."""

import copy
from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.chance.widening import widened
from esper.tasks.task import Samples, as_given

BETA1, BETA2, EPSILON, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01
CHUNK = 500
"""Samples judged at once."""


class Training:
    """A model in training, one step after the other.

    Every weight has powers of the betas of its own, so that one born later starts as in a fresh optimizer. The rate of
    those born with a ramp of ``n`` steps rises as ``(1 - beta2^age) / (1 - beta2^n)`` up to 1.

    Args:
        model: on its device; its parameters become views of one vector.

    Attributes:
        model: it.
        losses: training loss of every step, on the device.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.losses = model, list[Tensor]()
        self._weights = _tied(model)
        self._state = {name: torch.zeros_like(self._weights) for name in ("mean", "square")}
        self._state |= {name: torch.ones_like(self._weights) for name in ("power1", "power2")}
        self._state["ramp"] = torch.full_like(self._weights, torch.inf)
        self._sums = [torch.zeros_like(value, dtype=torch.float64) for value in self._averaged()]

    def step(self, x: Tensor, y: Tensor, rate: float) -> None:
        """Learn from a batch; on a GPU the forward pass is in bfloat16."""
        state, parameters = self._state, list(self.model.parameters())
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            outputs = self.model(x)
        loss = F.cross_entropy(outputs.float().flatten(0, -2), y.flatten())
        gradient = parameters_to_vector(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            state["power1"] *= BETA1
            state["power2"] *= BETA2
            state["mean"].lerp_(gradient, 1 - BETA1)
            state["square"].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            age = 1 - state["power2"]
            update = state["mean"] / (1 - state["power1"]) / (state["square"] / age).sqrt_().add_(EPSILON)
            update.add_(self._weights, alpha=WEIGHT_DECAY).mul_((age * state["ramp"]).clamp_(max=1))
            self._weights.add_(update, alpha=-rate)
            for total, value in zip(self._sums, self._averaged(), strict=True):
                total += value
        self.losses.append(loss.detach())

    def copy(self) -> Self:
        """The same once more, to go on with apart."""
        other = type(self)(copy.deepcopy(self.model))
        other._state = {name: values.clone() for name, values in self._state.items()}
        return other

    def grown(self, make: Callable[[], nn.Module], seed: int, ramp: int) -> Self:
        """The same, wider: old weights keep what the optimizer knows of them.

        Args:
            make: builds the wider model.
            seed: of the new weights.
            ramp: steps over which their rate rises; 0 for none.
        """
        model, places = widened(self.model, make, seed)
        other = type(self)(model)
        if ramp:
            other._state["ramp"].fill_(1 / (1 - BETA2**ramp))
        for name, new in other._state.items():
            for index, source, target in zip(
                places, _views(self._state[name], self.model), _views(new, model), strict=True
            ):
                target[index] = source
        return other

    def sums(self) -> list[Tensor]:
        """Sums of the weights and running statistics after every step so far."""
        return [total.clone() for total in self._sums]

    def averaged(self, start: list[Tensor], steps: int) -> nn.Module:
        """The model with the means of its weights over the last ``steps``, since which ``start`` were the sums."""
        model = copy.deepcopy(self.model)
        means = [((end - begin) / steps).float() for end, begin in zip(self._sums, start, strict=True)]
        vector_to_parameters(means[0], model.parameters())
        for buffer, mean in zip(_floating(model), means[1:], strict=True):
            buffer.copy_(mean)
        return model

    def _averaged(self) -> list[Tensor]:
        return [self._weights, *_floating(self.model)]


@torch.no_grad()
def judged(model: nn.Module, samples: Samples) -> tuple[Tensor, float]:
    """Loss of every sample (of a text, of a window), and the share of targets that are predicted right."""
    losses, hits = [], 0.0
    was_training, _ = model.training, model.eval()
    for x, y in zip(samples.x.split(CHUNK), samples.y.split(CHUNK), strict=True):
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            outputs = model(as_given(x)).float()
        each = F.cross_entropy(outputs.flatten(0, -2), y.long().flatten(), reduction="none")
        losses.append(each.view(len(y), -1).mean(1))
        hits += (outputs.argmax(-1) == y).float().mean().item() * len(y)
    model.train(was_training)
    return torch.cat(losses).cpu(), hits / len(samples.y)


def _tied(model: nn.Module) -> Tensor:
    weights = parameters_to_vector(model.parameters()).detach().clone()
    vector_to_parameters(weights, model.parameters())
    return weights


def _views(vector: Tensor, model: nn.Module) -> list[Tensor]:
    shapes = [parameter.shape for parameter in model.parameters()]
    parts = vector.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _floating(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
