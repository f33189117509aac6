"""Small models with old layers, for tests."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer

RAMP_STEPS = 4


def old_layer(base_layer: nn.Module) -> LegacyKasminaLayer:
    return LegacyKasminaLayer(base_layer, LegacyConfig(ramp_steps=RAMP_STEPS))


def bare(layer: nn.Module) -> nn.Module:
    return layer


def chain(around: Callable[[nn.Module], nn.Module] = old_layer) -> nn.Sequential:
    """Three linear layers; there is something around the first two."""
    torch.manual_seed(0)
    return nn.Sequential(around(nn.Linear(6, 8)), nn.ReLU(), around(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))


def batch(rows: int = 16) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, layer: LegacyKasminaLayer) -> None:
    """Steps of a loop of one's own."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()
        layer.advance()


def grown(layer: LegacyKasminaLayer, blueprint: str = "bottleneck_mlp", steps: int = RAMP_STEPS) -> LegacyKasminaLayer:
    """Its seed after so many steps of the ramp, its graft with bytes that do something."""
    layer.request_germination(0, blueprint)
    layer.begin_grafting(torch.optim.SGD(layer.base_layer.parameters(), lr=0.1))
    for parameter in layer.graft.values():
        nn.init.normal_(parameter, std=0.3)
    for _ in range(steps):
        layer.advance()
    return layer
