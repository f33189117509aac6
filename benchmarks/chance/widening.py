"""The same network with more channels, which computes what it computed before.

What is new reads everything, at random, and what is old reads nothing new (the aim of Chen et al., "Net2Net", ICLR
2016, by zeros instead of copies). Norms over channels treat old and new channels apart.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Index = tuple[Tensor, ...]
"""Where the elements of an old tensor stand in the new one: positions for each axis, to be broadcast together."""


class ApartNorm(nn.Module):
    """A LayerNorm of the first channels, and one of the others.

    Args:
        channels: of all; last axis.
        old: how many come first.
    """

    def __init__(self, channels: int, old: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self._old = old

    def forward(self, x: Tensor) -> Tensor:
        cut = [self._old, x.shape[-1] - self._old]
        parts = zip(x.split(cut, -1), self.weight.split(cut), self.bias.split(cut), strict=True)
        return torch.cat([F.layer_norm(part, part.shape[-1:], weight, bias) for part, weight, bias in parts], -1)


def widened(old: nn.Module, make: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, list[Index]]:
    """A wider network with the function of ``old``.

    Args:
        old: the network; its modules have the names of the wider one's.
        make: builds the wider one.
        seed: of its new weights.

    Returns:
        The network on the device of ``old``, and where the elements of every old parameter stand in it.
    """
    device = next(old.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = make()
    for name, norm in list(old.named_modules()):
        if isinstance(norm, nn.LayerNorm):
            channels = len(new.get_parameter(f"{name}.weight"))
            if channels != len(norm.weight):
                new.set_submodule(name, ApartNorm(channels, len(norm.weight)))
    new.to(device)
    tables = {f"{name}.weight" for name, module in old.named_modules() if isinstance(module, nn.Embedding)}
    places = []
    with torch.no_grad():
        for (name, source), target in zip(old.named_parameters(), new.parameters(), strict=True):
            index = _index(name, source, target)
            if source.dim() > 1 and name not in tables:
                target[index[0].flatten()] = 0.0
            target[index] = source
            places.append(index)
        for kept, buffer in zip(old.buffers(), new.buffers(), strict=True):
            buffer[tuple(slice(length) for length in kept.shape)] = kept
    return new, places


def _index(name: str, old: Tensor, new: Tensor) -> Index:
    axes = [torch.arange(length, device=new.device) for length in old.shape]
    if ".qkv." in name:  # queries, keys and values stand one after the other
        thirds = torch.arange(3, device=new.device)[:, None] * (len(new) // 3)
        axes[0] = (thirds + axes[0][: len(old) // 3]).flatten()
    return tuple(torch.meshgrid(*axes, indexing="ij"))
