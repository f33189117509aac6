"""One grown instance of a blueprint: what it is, not its bytes.

Legend: N parameters of one graft.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper.blueprints.blueprint import Blueprint, Ports
from esper.blueprints.catalogue import make_blueprint
from esper.kasmina.grafts.strategies import GraftStrategy, strategy_kind


@dataclass(frozen=True)
class Graft:
    """One grown instance of a blueprint.

    Args:
        lifecycle: number of the lifecycle that grew it.
        seeds: first seed, and the end; a group has several.
        channels: first channel it writes, and the end.
        ports: what it connects.
        blueprint: its recipe.
        strategy: how it is blended in.
        slot: its slot, None before it is live and once it is a fossil.
        is_rising: whether it is being blended in.
    """

    lifecycle: int
    seeds: tuple[int, int]
    channels: tuple[int, int]
    ports: Ports
    blueprint: Blueprint
    strategy: GraftStrategy
    slot: int | None = None
    is_rising: bool = False

    @property
    def num_parameters(self) -> int:
        return self.blueprint.num_parameters(self.ports)

    def unflatten(self, params_GN: Tensor) -> dict[str, Tensor]:
        """``[..., N]`` to named parameters ``[..., *shape]``."""
        named, start = {}, 0
        for name, shape in self.blueprint.shapes(self.ports).items():
            size = torch.Size(shape).numel()
            named[name] = params_GN[..., start : start + size].unflatten(-1, shape)
            start += size
        return named

    def flatten(self, params: dict[str, Tensor]) -> Tensor:
        """Named parameters to ``[N]``."""
        flat = [params[name].reshape(-1) for name in self.blueprint.shapes(self.ports)]
        return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float32)

    def birth(self, seed: int) -> Tensor:
        """First parameters ``[N]``, from a stream that belongs to the lifecycle alone."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.lifecycle)
        return self.flatten(self.blueprint.init(self.ports, generator))

    def to_dict(self) -> dict[str, object]:
        """The graft as plain values."""
        return {
            "lifecycle": self.lifecycle,
            "seeds": list(self.seeds),
            "channels": list(self.channels),
            "ports": list(self.ports),
            "blueprint": self.blueprint.id,
            "settings": self.blueprint.settings,
            "strategy": self.strategy.id,
            "strategy_settings": self.strategy.settings,
            "slot": self.slot,
            "is_rising": self.is_rising,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Graft":
        """Inverse of :meth:`to_dict`."""
        return cls(
            lifecycle=saved["lifecycle"],
            seeds=(saved["seeds"][0], saved["seeds"][1]),
            channels=(saved["channels"][0], saved["channels"][1]),
            ports=Ports(*saved["ports"]),
            blueprint=make_blueprint(saved["blueprint"], saved["settings"]),
            strategy=strategy_kind(saved["strategy"])(**saved["strategy_settings"]),
            slot=saved["slot"],
            is_rising=saved["is_rising"],
        )
