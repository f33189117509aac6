"""One grown instance of a blueprint: what it is, not its bytes.

Legend: N parameters of one graft.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Ports, Recipe
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.reports import Piece
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
    blueprint: Recipe
    strategy: GraftStrategy
    slot: int | None = None
    is_rising: bool = False

    @property
    def num_parameters(self) -> int:
        return self.blueprint.parameters_of(self.ports)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Where it meets the host, if it is a colony; one for each of its parts."""
        return self.blueprint.pieces(self.ports)

    @property
    def parts(self) -> tuple[Any, ...]:
        """What it connects, one by one; several in a colony."""
        return self.blueprint.parts(self.ports)

    def alone(self, index: int) -> "Graft":
        """One of its parts, as a graft of a single place."""
        part = self.parts[index]
        return self if self.ports.pieces is None else replace(self, ports=part, channels=(0, part.outputs))

    def unflatten(self, params_GN: Tensor) -> dict[str, Tensor]:
        """``[..., N]`` of a graft of one part to named parameters ``[..., *shape]``."""
        (part,) = self.parts
        return unflatten(self.blueprint, part, params_GN)

    def flatten(self, params: dict[str, Tensor]) -> Tensor:
        """Named parameters of a graft of one part to ``[N]``."""
        (part,) = self.parts
        return _flatten(self.blueprint, part, params)

    def birth(self, seed: int, hosts: Mapping[str, nn.Module] = MappingProxyType({})) -> Tensor:
        """First parameters ``[N]``, from a stream that belongs to the lifecycle alone, and from the host.

        Args:
            seed: of the place.
            hosts: the modules that it copies, by name.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.lifecycle)
        born = [self.blueprint.init(part, generator) for part in self.parts]
        for piece, part, params in zip(self.pieces, self.parts, born, strict=False):
            if piece.module in hosts:
                params |= self.blueprint.inherited(part, hosts[piece.module])
        return torch.cat([_flatten(self.blueprint, *one) for one in zip(self.parts, born, strict=True)])

    def to_dict(self) -> dict[str, object]:
        """The graft as plain values."""
        return {
            "lifecycle": self.lifecycle,
            "seeds": list(self.seeds),
            "channels": list(self.channels),
            "ports": [
                *self.ports[:4],
                None if self.ports.pieces is None else [asdict(piece) for piece in self.ports.pieces],
            ],
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
            ports=_ports(saved["ports"]),
            blueprint=make_blueprint(saved["blueprint"], saved["settings"]),
            strategy=strategy_kind(saved["strategy"])(**saved["strategy_settings"]),
            slot=saved["slot"],
            is_rising=saved["is_rising"],
        )


def unflatten(blueprint: Recipe, part: Any, params_GN: Tensor) -> dict[str, Tensor]:
    """``[..., N]`` of one part to named parameters ``[..., *shape]``."""
    named, start = {}, 0
    for name, shape in blueprint.shapes(part).items():
        size = torch.Size(shape).numel()
        named[name] = params_GN[..., start : start + size].unflatten(-1, shape)
        start += size
    return named


def _flatten(blueprint: Recipe, part: Any, params: dict[str, Tensor]) -> Tensor:
    flat = [params[name].reshape(-1) for name in blueprint.shapes(part)]
    return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.float32)


def _ports(saved: list[Any]) -> Ports:
    inputs, outputs, layout, positions, *rest = saved
    pieces = tuple(map(Piece.from_dict, rest[0])) if rest and rest[0] is not None else None
    return Ports(inputs, outputs, layout, positions, pieces)
