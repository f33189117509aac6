"""Grafts of one shape, computed as a batch.

Legend: G grafts of a group, N parameters of one graft, K channels a graft writes, B... leading axes of activations.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Blueprint
from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.guard import (
    FOSSIL_FAULT,
    LIVE_FAULT,
    NOBODY,
    Blame,
    Entry,
    Exit,
    finite_G,
    new_mark,
    select_G,
)
from esper.kasmina.seeds.seed_state import SeedState

Watcher = Callable[[Tensor, int], None]
"""``(delta [G, B..., K], index of the piece)``."""


class Group(nn.Module):
    """Grafts of one blueprint and shape whose channels do not overlap, computed as one batch.

    Args:
        grafts: the grafts, all live or all fossils.
        num_channels: channels of the host's output.
        device: where the activations are.

    Attributes:
        watchers: are shown what the grafts add in every forward pass, and for which piece of a colony that is.
    """

    slots: Tensor
    seeds: Tensor
    channels: Tensor

    def __init__(self, grafts: Sequence[Graft], num_channels: int, device: torch.device) -> None:
        super().__init__()
        self.grafts, blueprint = grafts, grafts[0].blueprint
        assert isinstance(blueprint, Blueprint)
        self.blueprint, self.num_parameters = blueprint, grafts[0].num_parameters
        self.is_live = grafts[0].slot is not None
        self.watchers: list[Watcher] = []
        self.covers_all = grafts[0].channels == (0, num_channels)
        columns = {
            "slots": [graft.slot or 0 for graft in grafts],
            "seeds": [graft.seeds[0] for graft in grafts],
            "channels": [list(range(*graft.channels)) for graft in grafts],
        }
        for name, values in columns.items():  # recomputed from the topology, so never stored
            self.register_buffer(name, torch.tensor(values, device=device), persistent=False)

    def is_channels_first(self, index: int) -> bool:
        """Whether what is added has its channels elsewhere than last; never here."""
        return False

    def add_to(
        self, y: Tensor, x: Tensor, params_GN: Tensor, state: SeedState, geometry: Geometry, x_is_finite: Tensor | None
    ) -> Tensor:
        """Host output ``y [B..., channels]`` with the group's deltas; ``x [B..., inputs]`` is what a geometry reads.

        ``x_is_finite`` is bool ``[1]``; without it no fault is raised.
        """
        alpha_G = share_of(self, state)
        y_GK = y.unsqueeze(0) if self.covers_all else y[..., self.channels].movedim(-2, 0)
        is_shared = self.blueprint.reads == "input"
        may_blame_G = None
        if x_is_finite is not None:
            may_blame_G = finite_G(y_GK) & x_is_finite if is_shared else finite_G(y_GK)
        blame = blame_of(self, state, raises_faults=may_blame_G is not None)

        entered = x if is_shared else y_GK
        x_in_G, params_in_GN, mark = Entry.apply(entered, params_GN, new_mark(params_GN), is_shared, *blame)
        delta_G = self._deltas(x_in_G, params_in_GN)
        if self.blueprint.reads == "input" and geometry.adapter == "pool":
            settled = geometry.settle(delta_G.flatten(0, 1), y.expand(len(self.grafts), *y.shape).flatten(0, 1))
            delta_G = settled.unflatten(0, (len(self.grafts), -1))
        delta_G = Exit.apply(delta_G, mark, may_blame_G)
        for show in self.watchers:
            show(delta_G, 0)

        is_finite_G = finite_G(params_GN)
        grown_GK, is_sound_G = blended(y_GK, delta_G, alpha_G, is_finite_G & (alpha_G > 0))
        if may_blame_G is not None:
            blame.on(may_blame_G & ~(is_finite_G & is_sound_G))
        if self.covers_all:
            return grown_GK.squeeze(0)
        return y.index_copy(-1, self.channels.flatten(), grown_GK.movedim(0, -2).flatten(-2))

    def _deltas(self, x_G: Tensor, params_GN: Tensor) -> Tensor:
        named_G = self.grafts[0].unflatten(params_GN)
        if len(self.grafts) == 1:  # vmap costs as much as a small graft
            return self.blueprint.delta({name: value[0] for name, value in named_G.items()}, x_G[0]).unsqueeze(0)
        return torch.vmap(self.blueprint.delta)(named_G, x_G)


class Sharing(Protocol):
    """Grafts with seeds."""

    is_live: bool
    seeds: Tensor


def share_of(grafts: Sharing, state: SeedState) -> Tensor:
    """Float32 ``[G]``: by how much what grafts add is scaled; fossils count in full."""
    return state.alpha[grafts.seeds] if grafts.is_live else torch.ones_like(grafts.seeds, dtype=torch.float32)


def blame_of(grafts: Sharing, state: SeedState, *, raises_faults: bool) -> Blame:
    """Whom to blame for what grafts do."""
    bit = LIVE_FAULT if grafts.is_live else FOSSIL_FAULT
    return Blame(grafts.seeds, bit, state.number if raises_faults else NOBODY)


def blended(y_G: Tensor, delta_G: Tensor, alpha_G: Tensor, counts_G: Tensor) -> tuple[Tensor, Tensor]:
    """What the host wrote, ``y_G [G, ...]``, with what grafts add to it; as it was where that is not finite, and where
    they do not count. And whether it is finite, bool ``[G]``."""
    grown_G = y_G + alpha_G.to(y_G.dtype).view(-1, *[1] * (y_G.dim() - 1)) * delta_G.to(y_G.dtype)
    # the sum is what the host gets: in half precision it can overflow where both of its parts are finite
    is_finite_G = finite_G(grown_G)
    return select_G(is_finite_G & counts_G, grown_G, y_G), is_finite_G
