"""Controls: blueprints that must not be kept. A judge that keeps them cannot be trusted.

They are exempt from zero start and birth check and never in the default catalogue.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.widen import MATRICES, Widen
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Piece


@dataclass(frozen=True)
class Placebo(BottleneckMLP):
    """A trained bottleneck that reads the previous sample of the batch instead of its own: it cannot know anything.

    Where the batch is not axis 0 and nothing tells so, it reads the previous token instead, and is no control.
    """

    id: ClassVar[str] = "placebo"
    family: ClassVar[str] = "control"
    confidence: ClassVar[int] = 0
    starts_at_zero: ClassVar[bool] = False

    def delta(self, params: dict[str, Tensor], x: Tensor) -> Tensor:
        return super().delta(params, x.roll(1, dims=0))

    def to_module(self, ports: Ports, params: dict[str, Tensor]) -> nn.Module:
        raise ConfigError("A placebo is a control and cannot be exported. Export a run grown without controls.")


@dataclass(frozen=True)
class RandomFrozen(BottleneckMLP):
    """A bottleneck drawn at random in both layers and never trained."""

    id: ClassVar[str] = "random_frozen"
    family: ClassVar[str] = "control"
    confidence: ClassVar[int] = 0
    is_trainable: ClassVar[bool] = False
    starts_at_zero: ClassVar[bool] = False

    def init(self, ports: Ports, generator: Generator) -> dict[str, Tensor]:
        params = super().init(ports, generator)
        bound = 1 / math.sqrt(self.hidden)
        for name in ("w2", "b2"):
            params[name] = torch.empty_like(params[name]).uniform_(-bound, bound, generator=generator)
        return params


@dataclass(frozen=True)
class RandomChannels(Widen):
    """New channels drawn at random and never trained, in what they read and in what is read of them: a colony."""

    id: ClassVar[str] = "random_channels"
    family: ClassVar[str] = "control"
    confidence: ClassVar[int] = 0
    is_trainable: ClassVar[bool] = False
    starts_at_zero: ClassVar[bool] = False

    def init(self, ports: Piece, generator: Generator) -> dict[str, Tensor]:
        params = super().init(ports, generator)
        if "old" in params and ports.role in MATRICES:
            bound = 1 / math.sqrt(params["old"][0].numel())
            params["old"].uniform_(-bound, bound, generator=generator)
        return params
