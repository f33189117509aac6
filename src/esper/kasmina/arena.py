"""Where grafts live: equal slots for live ones in one parameter, buffers for fossils.

Legend: G grafts of a group, N parameters of one graft, K channels a graft writes, B... leading axes of activations.

The parameter exists from wrap time on, with zero elements until the first graft, so that optimizers, clipping and
schedulers know it from the start; it is enlarged through ``.data``. Its gradient never reaches the user's optimizer:
``slot_optimizer`` takes it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.lifecycle import TRAINABLE
from esper.kasmina.geometry import Geometry
from esper.kasmina.graft import Graft
from esper.kasmina.guard import FOSSIL_FAULT, LIVE_FAULT, Entry, Exit, Watch, finite_G, select_G
from esper.kasmina.seed_state import KeepsDtype, SeedState
from esper.kasmina.strategies import FixedRamp


class Group(nn.Module):
    """Grafts of one blueprint and shape whose channels do not overlap, computed as one batch.

    Args:
        grafts: the grafts, all live or all fossils.
        num_channels: channels of the host's output.
        device: where the activations are.

    Attributes:
        watchers: are shown what the grafts add in every forward pass, ``[G, B..., K]``.
    """

    slots: Tensor
    seeds: Tensor
    channels: Tensor

    def __init__(self, grafts: list[Graft], num_channels: int, device: torch.device) -> None:
        super().__init__()
        self.grafts = grafts
        self.blueprint, self.num_parameters = grafts[0].blueprint, grafts[0].num_parameters
        self.is_live = grafts[0].slot is not None
        self.watchers: list[Callable[[Tensor], None]] = []
        self.covers_all = grafts[0].channels == (0, num_channels)
        columns = {
            "slots": [graft.slot or 0 for graft in grafts],
            "seeds": [graft.seeds[0] for graft in grafts],
            "channels": [list(range(*graft.channels)) for graft in grafts],
        }
        for name, values in columns.items():  # recomputed from the topology, so never stored
            self.register_buffer(name, torch.tensor(values, device=device), persistent=False)
        # Never called. Any hook below it keeps nn.TransformerEncoderLayer in eval mode off its fast path, which reads
        # the weights of linear1 and linear2 and would bypass grafts on them.
        self.register_forward_pre_hook(_refuse_call)

    def add_to(
        self, y: Tensor, x: Tensor, params_GN: Tensor, state: SeedState, geometry: Geometry, *, raises_faults: bool
    ) -> Tensor:
        """Host output ``y [B..., channels]`` with the group's deltas; ``x [B..., inputs]`` is what a geometry reads."""
        alpha_G = state.alpha[self.seeds] if self.is_live else torch.ones_like(self.seeds, dtype=torch.float32)
        y_GK = y.unsqueeze(0) if self.covers_all else y[..., self.channels].movedim(-2, 0)
        is_shared = self.blueprint.reads == "input"
        may_blame_G = finite_G(y_GK) if raises_faults else None
        if may_blame_G is not None and is_shared:
            may_blame_G = may_blame_G & finite_G(x.unsqueeze(0))
        watch = Watch(state.fault, self.seeds, LIVE_FAULT if self.is_live else FOSSIL_FAULT, may_blame_G)

        x_in_G, params_in_GN = Entry.apply(x if is_shared else y_GK, params_GN, watch, is_shared)
        delta_G = self._deltas(x_in_G, params_in_GN)
        if self.blueprint.reads == "input" and geometry.adapter == "pool":
            settled = geometry.settle(delta_G.flatten(0, 1), y.expand(len(self.grafts), *y.shape).flatten(0, 1))
            delta_G = settled.unflatten(0, (len(self.grafts), -1))
        delta_G = Exit.apply(delta_G, watch)
        for show in self.watchers:
            show(delta_G)

        # the sum is what the host gets: in half precision it can overflow where both of its parts are finite
        grown_GK = y_GK + alpha_G.to(y.dtype).view(-1, *[1] * y.dim()) * delta_G.to(y.dtype)
        is_sound_G = finite_G(params_GN) & finite_G(grown_GK)
        watch.blame(~is_sound_G)
        grown_GK = select_G(is_sound_G & (alpha_G > 0), grown_GK, y_GK)
        if self.covers_all:
            return grown_GK[0]
        return y.index_copy(-1, self.channels.flatten(), grown_GK.movedim(0, -2).flatten(-2))

    def _deltas(self, x_G: Tensor, params_GN: Tensor) -> Tensor:
        named_G = self.grafts[0].unflatten(params_GN)
        if len(self.grafts) == 1:  # vmap costs as much as a small graft
            return self.blueprint.delta({name: value[0] for name, value in named_G.items()}, x_G[0]).unsqueeze(0)
        return torch.vmap(self.blueprint.delta)(named_G, x_G)


class Activity:
    """How many places that a host module's forward must serve have grafts.

    A plain number, so that a forward without grafts costs one look-up whatever the number of seeds.
    """

    def __init__(self) -> None:
        self.places = 0


class Arena(KeepsDtype):
    """Slots of live grafts with optimizer state and what their strategies remember, and the bytes of fossils.

    Args:
        num_channels: channels of the host's output.
        dtype: of the grafts' parameters.
        device: where they live.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    updates: Tensor
    memory: Tensor

    def __init__(self, num_channels: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.grafts: dict[int, Graft] = {}  # by lifecycle, not yet fossils
        self.fossils: list[list[Graft]] = []  # by group
        self.num_slots, self.slot_size = 0, 0
        self.slots = nn.Parameter(torch.zeros(0, dtype=dtype, device=device))
        for name in ("exp_avg", "exp_avg_sq", "memory"):  # Adam's moments and the strategy's memory of every slot
            self.register_buffer(name, torch.zeros(0, 0, device=device))
        self.register_buffer("updates", torch.zeros(0, device=device))
        self.groups = nn.ModuleList()
        self.activities: list[Activity] = []

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        for index in range(len(self.fossils)):  # fossils are weights: unlike statistics they follow the host's dtype
            self._buffers[f"fossils_{index}"] = self.fossil_bytes(index).to(self.slots.dtype)
        return self

    @property
    def live(self) -> list[Graft]:
        """Grafts that take part in the forward pass."""
        return [graft for graft in self.grafts.values() if graft.slot is not None]

    def live_group(self, lifecycle: int) -> tuple[Group, int]:
        """The group in which a live graft is computed, and its index there."""
        groups = [group for group in self.groups if isinstance(group, Group) and group.is_live]
        numbered = ((group, index, graft) for group in groups for index, graft in enumerate(group.grafts))
        return next((group, index) for group, index, graft in numbered if graft.lifecycle == lifecycle)

    @property
    def num_parameters(self) -> int:
        """Parameters of live grafts and fossils."""
        grafts = [*self.live, *(graft for group in self.fossils for graft in group)]
        return sum(graft.num_parameters for graft in grafts)

    def slots_SN(self) -> Tensor:
        """The slots as ``[slots, slot size]``."""
        return self.slots.view(self.num_slots, self.slot_size)

    def fossil_bytes(self, index: int) -> Tensor:
        """Parameters ``[G, N]`` of a group of fossils."""
        return self.get_buffer(f"fossils_{index}")

    def params_of(self, graft: Graft) -> Tensor:
        """Parameters ``[N]`` of a live graft, a view."""
        assert graft.slot is not None
        return self.slots_SN()[graft.slot, : graft.num_parameters]

    def add_to(self, y: Tensor, x: Tensor, state: SeedState, geometry: Geometry, *, raises_faults: bool) -> Tensor:
        """Host output ``y`` with all fossils and live grafts; ``x`` is what ``geometry`` reads."""
        slots_SN = self.slots_SN() if self.num_slots else self.slots
        for index, group in enumerate(self.groups):
            assert isinstance(group, Group)
            if not group.is_live:
                params_GN = self.fossil_bytes(index)
            else:
                params_GN = slots_SN.index_select(0, group.slots)[:, : group.num_parameters]
                params_GN = select_G(self.trainable(state)[group.seeds], params_GN, params_GN.detach())
                if not group.blueprint.is_trainable:
                    params_GN = params_GN.detach()
            y = group.add_to(y, x, params_GN, state, geometry, raises_faults=raises_faults)
        return y

    @staticmethod
    def trainable(state: SeedState) -> Tensor:
        """Bool ``[seeds]``: whether a graft of the seed moves now."""
        first, second = sorted(TRAINABLE)
        return (state.lifecycle == first) | (state.lifecycle == second)

    @torch.no_grad()
    def plant(self, graft: Graft, params: Tensor) -> Graft:
        """Put a graft into a free slot, with fresh optimizer state, to rise; the arena grows if none is free."""
        used = {other.slot for other in self.live}
        slot = next((index for index in range(self.num_slots) if index not in used), self.num_slots)
        self._resize(
            max(self.num_slots, slot + 1),
            max(self.slot_size, graft.num_parameters),
            max(self.memory.shape[1], graft.strategy.memory),
        )
        graft = replace(graft, slot=slot, is_rising=True)
        for columns in (self.slots_SN(), self.exp_avg, self.exp_avg_sq, self.updates, self.memory):
            columns[slot].zero_()
        self.params_of(graft).copy_(params)
        self.grafts[graft.lifecycle] = graft
        self.regroup()
        return graft

    def settle(self, lifecycle: int) -> None:
        """Note that a graft is not being blended in any more; it may have left already."""
        if lifecycle in self.grafts:
            self.grafts[lifecycle] = replace(self.grafts[lifecycle], is_rising=False)

    @torch.no_grad()
    def remove(self, lifecycle: int) -> None:
        """Take a graft out, leaving no trace. The last one's leaving returns the memory."""
        self.grafts.pop(lifecycle)
        if not self.live:
            self._resize(0, 0, 0)
        self.regroup()

    @torch.no_grad()
    def fossilize(self, lifecycle: int) -> None:
        """Move a live graft's bytes out of its slot into a buffer, for good."""
        graft = self.grafts[lifecycle]
        params = self.params_of(graft).detach().clone()
        fossil = replace(graft, slot=None, strategy=FixedRamp(), is_rising=False)  # it rises no more
        index = self._group_of(fossil)
        if index < len(self.fossils):
            self._buffers[f"fossils_{index}"] = torch.cat([self.fossil_bytes(index), params.unsqueeze(0)])
            self.fossils[index].append(fossil)
        else:
            self.register_buffer(f"fossils_{index}", params.unsqueeze(0))
            self.fossils.append([fossil])
        self.remove(lifecycle)

    def _group_of(self, fossil: Graft) -> int:
        """The group a new fossil joins; a group of its own if it would run before one that writes its channels.

        It ran after all of them while it was live, and both sums and ``reads="chunk"`` depend on the order.
        """
        for index in reversed(range(len(self.fossils))):
            if _can_join(fossil, self.fossils[index]):
                return index
            if any(_overlap(fossil, other) for other in self.fossils[index]):
                break
        return len(self.fossils)

    def topology(self) -> dict[str, object]:
        """Which grafts there are, as plain values: what must be rebuilt before bytes can be loaded."""
        return {
            "num_slots": self.num_slots,
            "slot_size": self.slot_size,
            "memory_size": self.memory.shape[1],
            "grafts": [graft.to_dict() for graft in self.grafts.values()],
            "fossils": [[graft.to_dict() for graft in group] for group in self.fossils],
        }

    @torch.no_grad()
    def regrow(self, topology: dict[str, Any]) -> None:
        """Take on a topology; bytes are undefined until they are loaded."""
        if topology == self.topology():
            return
        for index in range(len(self.fossils)):
            del self._buffers[f"fossils_{index}"]
        self.grafts = {saved["lifecycle"]: Graft.from_dict(saved) for saved in topology["grafts"]}
        self.fossils = [[Graft.from_dict(saved) for saved in group] for group in topology["fossils"]]
        for index, group in enumerate(self.fossils):
            shape = (len(group), group[0].num_parameters)
            self.register_buffer(f"fossils_{index}", self.slots.detach().new_zeros(shape))
        self._resize(topology["num_slots"], topology["slot_size"], topology["memory_size"])
        self.regroup()

    def rebound(self, bounds: Sequence[int]) -> None:
        """Deal the fossils to the seeds that now own their channels; there must be no other graft.

        Args:
            bounds: first channel of every seed's chunk, and the end.
        """
        assert not self.grafts

        def dealt(fossil: Graft) -> Graft:
            first, end = fossil.channels
            return replace(fossil, seeds=(bisect_right(bounds, first) - 1, bisect_left(bounds, end)))

        self.fossils = [[dealt(fossil) for fossil in group] for group in self.fossils]
        self.regroup()

    def regroup(self) -> None:
        """Recompute which grafts run as one batch: fossils first, in the order of their buffers, then live ones."""
        live: list[list[Graft]] = []
        for graft in self.live:
            group = next((group for group in live if _can_join(graft, group)), None)
            if group is None:
                live.append([graft])
            else:
                group.append(graft)
        device, was_active = self.slots.device, len(self.groups) > 0
        self.groups = nn.ModuleList(Group(group, self.num_channels, device) for group in [*self.fossils, *live])
        for activity in self.activities:
            activity.places += (len(self.groups) > 0) - was_active

    def _resize(self, num_slots: int, slot_size: int, memory_size: int) -> None:
        def resized(before_SN: Tensor, width: int) -> Tensor:
            after_SN = before_SN.new_zeros(num_slots, width)
            rows, columns = min(num_slots, before_SN.shape[0]), min(width, before_SN.shape[1])
            after_SN[:rows, :columns] = before_SN[:rows, :columns]
            return after_SN

        if (num_slots, slot_size) != (self.num_slots, self.slot_size):
            slots = resized(self.slots_SN().detach(), slot_size).view(-1)
            self.slots.grad = None
            # A loss that somebody still holds keeps the node that accumulates this parameter's gradient, and the node
            # keeps the old size. Torch lets go of it where the dtype changes, and only there.
            self.slots.data = slots.to(torch.float64 if slots.dtype is torch.float32 else torch.float32)
            self.slots.data = slots
            self.exp_avg, self.exp_avg_sq = resized(self.exp_avg, slot_size), resized(self.exp_avg_sq, slot_size)
            self.updates = resized(self.updates.unsqueeze(1), 1).squeeze(1)
            self.num_slots, self.slot_size = num_slots, slot_size
        if (num_slots, memory_size) != self.memory.shape:
            self.memory = resized(self.memory, memory_size)


def _refuse_call(group: nn.Module, args: Any) -> None:
    raise RuntimeError("A group of grafts is computed by add_to; it is not called.")


def _can_join(graft: Graft, group: list[Graft]) -> bool:
    """Whether a graft may run in one batch with a group: same recipe and shape, no channel written twice."""
    like = group[0]
    if (graft.blueprint, graft.ports) != (like.blueprint, like.ports):
        return False
    if graft.channels[1] - graft.channels[0] != like.channels[1] - like.channels[0]:
        return False
    return not any(_overlap(graft, other) for other in group)


def _overlap(one: Graft, other: Graft) -> bool:
    return one.channels[0] < other.channels[1] and other.channels[0] < one.channels[1]
