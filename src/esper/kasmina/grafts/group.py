"""Grafts of one shape, computed as a batch.

Legend: G grafts of a group, N parameters of one graft, S slots, K channels a graft writes, B... leading axes of
activations.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from esper.blueprints.blueprint import Blueprint, Recipe
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
from esper.kasmina.kernels.adamw.reference import trainable
from esper.kasmina.kernels.grafts.family import Shape
from esper.kasmina.kernels.grafts.layout import Spots
from esper.kasmina.kernels.grafts.ops import Batch, grown, takes
from esper.kasmina.kernels.grafts.owning import fewest_references
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
        self.num_channels, self.covers_all = num_channels, grafts[0].channels == (0, num_channels)
        self._shape = Shape.of(blueprint, grafts[0].ports)
        self._spots: Spots | None = None
        for is_view in (False, True) if self._shape is not None else ():
            fewest_references(is_view=is_view)  # once in a process, outside of a model's passes
        columns = {
            "slots": [graft.slot for graft in grafts] if self.is_live else list(range(len(grafts))),
            "seeds": [graft.seeds[0] for graft in grafts],
            "channels": [list(range(*graft.channels)) for graft in grafts],
        }
        for name, values in columns.items():  # recomputed from the topology, so never stored
            self.register_buffer(name, torch.tensor(values, device=device), persistent=False)

    def is_channels_first(self, index: int) -> bool:
        """Whether what is added has its channels elsewhere than last; never here."""
        return False

    def add_to(
        self,
        y: Tensor,
        x: Tensor,
        slots_SN: Tensor,
        state: SeedState,
        geometry: Geometry,
        x_is_finite: Tensor | None,
        *,
        raises_faults: bool,
        may_write_over: bool = False,
    ) -> Tensor:
        """The host's output with what the grafts add.

        Args:
            y: the output, ``[B..., channels]``.
            x: what a geometry reads, ``[B..., inputs]``.
            slots_SN: parameters of all slots, or of the fossils.
            state: of the seeds.
            geometry: of the place.
            x_is_finite: bool ``[1]``; needed where faults are raised by grafts that read ``x``.
            raises_faults: whether what is not finite is noted.
            may_write_over: whether ``y`` is nobody else's, so that the output may have its memory.
        """
        reads_input = not self.blueprint.reads_chunk
        slots_SN = in_precision_of(x if reads_input else y, slots_SN)

        def plain(y: Tensor, x_read: Tensor | None, slots_SN: Tensor) -> Tensor:
            return self._add_to(
                y, slots_SN, y if x_read is None else x_read, state, geometry, x_is_finite, raises_faults=raises_faults
            )

        is_apart = reads_input and (geometry.adapter != "same" or x.shape[:-1] != y.shape[:-1])
        if self._shape is None or self.watchers or is_apart or not takes(y, slots_SN):
            return plain(y, x, slots_SN)
        batch, read = self._batch(self._shape), x if reads_input else None
        return grown(
            y,
            read,
            slots_SN,
            batch,
            state,
            plain,
            x_is_finite,
            raises_faults=raises_faults,
            may_write_over=may_write_over,
        )

    def _batch(self, shape: Shape) -> Batch:
        if self._spots is None or self._spots.first_T.device != self.slots.device:
            firsts, width = [graft.channels[0] for graft in self.grafts], shape.channels
            self._spots = Spots.of(firsts, width, self.num_channels, self.slots.device)
        return Batch(shape, self._spots, self.slots, self.seeds, self.is_live, _bit(self))

    def _add_to(
        self,
        y: Tensor,
        slots_SN: Tensor,
        x: Tensor,
        state: SeedState,
        geometry: Geometry,
        x_is_finite: Tensor | None,
        *,
        raises_faults: bool,
    ) -> Tensor:
        params_GN = params_of(self, slots_SN, state)
        alpha_G = share_of(self, state)
        y_GK = y.unsqueeze(0) if self.covers_all else y[..., self.channels].movedim(-2, 0)
        is_shared = self.blueprint.reads == "input"
        may_blame_G = None
        if raises_faults:
            may_blame_G = finite_G(y_GK)
            if is_shared:
                assert x_is_finite is not None
                may_blame_G = may_blame_G & x_is_finite
        blame = blame_of(self, state, raises_faults=raises_faults)

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


class Parametrised(Sharing, Protocol):
    """Grafts with parameters."""

    slots: Tensor
    num_parameters: int

    @property
    def blueprint(self) -> Recipe:
        """Of all of them."""


def params_of(grafts: Parametrised, slots_SN: Tensor, state: SeedState) -> Tensor:
    """Parameters ``[G, N]``: those that move now carry gradients."""
    if not grafts.is_live:
        return slots_SN
    params_GN = slots_SN.index_select(0, grafts.slots)[:, : grafts.num_parameters]
    if not grafts.blueprint.is_trainable:
        return params_GN.detach()
    return select_G(trainable(state.lifecycle)[grafts.seeds], params_GN, params_GN.detach())


def in_precision_of(x: Tensor, params: Tensor) -> Tensor:
    """Parameters in the dtype of what they work on, as where ``fully_shard`` lets a host compute in half precision. In
    autocast that is settled op by op."""
    is_settled = not x.is_floating_point() or torch.is_autocast_enabled(x.device.type)
    return params if is_settled else params.to(x.dtype)


def share_of(grafts: Sharing, state: SeedState) -> Tensor:
    """Float32 ``[G]``: by how much what grafts add is scaled; fossils count in full."""
    return state.alpha[grafts.seeds] if grafts.is_live else torch.ones_like(grafts.seeds, dtype=torch.float32)


def blame_of(grafts: Sharing, state: SeedState, *, raises_faults: bool) -> Blame:
    """Whom to blame for what grafts do."""
    return Blame(grafts.seeds, _bit(grafts), state.number if raises_faults else NOBODY)


def _bit(grafts: Sharing) -> int:
    """Of their faults."""
    return LIVE_FAULT if grafts.is_live else FOSSIL_FAULT


def blended(y_G: Tensor, delta_G: Tensor, alpha_G: Tensor, counts_G: Tensor) -> tuple[Tensor, Tensor]:
    """What the host wrote, ``y_G [G, ...]``, with what grafts add to it; as it was where that is not finite, and where
    they do not count. And whether it is finite, and so is their share, bool ``[G]``."""
    share_G = alpha_G.to(y_G.dtype)
    is_share_G = torch.isfinite(share_G)  # else the gradient of what is not selected is 0 * nan
    grown_G = y_G + select_G(is_share_G, share_G).view(-1, *[1] * (y_G.dim() - 1)) * delta_G.to(y_G.dtype)
    # the sum is what the host gets: in half precision it can overflow where both of its parts are finite
    is_sound_G = finite_G(grown_G) & is_share_G
    return select_G(is_sound_G & counts_G, grown_G, y_G), is_sound_G
