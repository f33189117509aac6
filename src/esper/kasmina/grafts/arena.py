"""Where grafts live: equal slots for live ones in one parameter, buffers for fossils.

Legend: G grafts of a group, N parameters of one graft, K channels a graft writes, B... leading axes of activations,
S slots.

The parameter exists from wrap time on, with zero elements until the first graft, so that optimizers, clipping and
schedulers know it from the start; it is enlarged through ``.data``. Its gradient never reaches the user's optimizer:
``slot_optimizer`` takes it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from esper.kasmina.geometry import Geometry
from esper.kasmina.grafts.activity import Activity
from esper.kasmina.grafts.colony import ChannelStatistics, Colony, copied_norms, statistics_of
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.group import Group, params_of
from esper.kasmina.grafts.guard import finite_G
from esper.kasmina.grafts.strategies import FixedRamp, GraftStrategy
from esper.kasmina.seeds.seed_state import KeepsDtype, SeedState


class Ramp(NamedTuple):
    """The grafts that one strategy blends in and that need its look at signals.

    Args:
        strategy: how.
        slots: int64 ``[G]``, slot of each graft.
        seeds: int64, all seeds of all of them, one after the other.
        owners: int64, index of the graft of each of ``seeds``.
    """

    strategy: GraftStrategy
    slots: Tensor
    seeds: Tensor
    owners: Tensor


class Arena(KeepsDtype):
    """Slots of live grafts with optimizer state and what their strategies remember, and the bytes of fossils.

    Args:
        num_channels: channels of the host's output.
        dtype: of the grafts' parameters.
        device: where they live.
        name: of the place.

    Attributes:
        ramps: the grafts that strategies blend in by signals.
        slot_seeds: int64 ``[S]``, first seed of the graft in each slot; 0 where there is none.
        slot_trains: bool ``[S]``, whether there is a graft whose parameters ever move.
        slot_rates: float32 ``[S, 1]``, the learning rate of its family, relative to that of others.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    updates: Tensor
    memory: Tensor
    ramps: list[Ramp]
    slot_seeds: Tensor
    slot_trains: Tensor
    slot_rates: Tensor

    def __init__(self, num_channels: int, dtype: torch.dtype, device: torch.device, name: str = "") -> None:
        super().__init__()
        self.num_channels, self.name = num_channels, name
        self.grafts: dict[int, Graft] = {}  # by lifecycle, not yet fossils
        self.fossils: list[list[Graft]] = []  # by group
        self.num_slots, self.slot_size = 0, 0
        self.slots = nn.Parameter(torch.zeros(0, dtype=dtype, device=device))
        for name in ("exp_avg", "exp_avg_sq", "memory"):  # Adam's moments and the strategy's memory of every slot
            self.register_buffer(name, torch.zeros(0, 0, dtype=torch.float32, device=device))
        self.register_buffer("updates", torch.zeros(0, dtype=torch.float32, device=device))
        self.statistics = nn.ModuleDict()  # of colonies, behind batch norms
        self.groups = nn.ModuleList()
        self.activities: list[Activity] = []
        self._index()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        for index in range(len(self.fossils)):  # fossils are weights: unlike statistics they follow the host's dtype
            self._buffers[f"fossils_{index}"] = self.fossil_bytes(index).to(self.slots.dtype)
        self._index()
        return self

    @property
    def live(self) -> list[Graft]:
        """Grafts that take part in the forward pass."""
        return [graft for graft in self.grafts.values() if graft.slot is not None]

    def live_group(self, lifecycle: int) -> tuple[Group | Colony, int]:
        """The group in which a live graft is computed, and its index there."""
        return self._seats[lifecycle]

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

    def add_to(
        self,
        y: Tensor,
        x: Tensor,
        state: SeedState,
        geometry: Geometry,
        *,
        raises_faults: bool,
        may_write_over: bool = False,
    ) -> Tensor:
        """Host output ``y`` with all fossils and live grafts; ``x`` is what ``geometry`` reads.

        Args:
            y, x, state, geometry, raises_faults, may_write_over: as of a group.
        """
        groups = list(self._computed())
        is_read = raises_faults and any(not group.blueprint.reads_chunk for group, _ in groups)
        x_is_finite = finite_G(x.unsqueeze(0)) if is_read else None  # once, whoever reads it
        for group, slots_SN in groups:
            assert isinstance(group, Group)
            y = group.add_to(
                y,
                x,
                slots_SN,
                state,
                geometry,
                x_is_finite,
                raises_faults=raises_faults,
                may_write_over=may_write_over,
            )
        return y

    def colonies(self, state: SeedState) -> Iterator[tuple[Colony, Tensor]]:
        """Colonies with their parameters ``[N]`` as this forward pass uses them."""
        for group, slots_SN in self._computed():
            if isinstance(group, Colony):
                yield group, params_of(group, slots_SN, state)[0]

    def _computed(self) -> Iterator[tuple[Group | Colony, Tensor]]:
        """All groups in their order, with the parameters of all slots, or of the group's fossils."""
        slots_SN = self.slots_SN() if self.num_slots else self.slots
        for index, group in enumerate(self.groups):
            assert isinstance(group, Group | Colony)
            yield group, slots_SN if group.is_live else self.fossil_bytes(index)

    @torch.no_grad()
    def plant(
        self, grafts: Sequence[Graft], params: Sequence[Tensor], hosts: Mapping[str, nn.Module] = MappingProxyType({})
    ) -> None:
        """Put grafts into free slots, with fresh optimizer state, to rise; the arena grows if too few are free.

        Args:
            grafts: not live yet.
            params: parameters ``[N]`` of each.
            hosts: the modules that they copy, by name, whose running statistics they take over.
        """
        used = {graft.slot for graft in self.live}
        free = [slot for slot in range(self.num_slots + len(grafts)) if slot not in used][: len(grafts)]
        self._resize(
            max(self.num_slots, free[-1] + 1),
            max(self.slot_size, *(graft.num_parameters for graft in grafts)),
            max(self.memory.shape[1], *(graft.strategy.memory for graft in grafts)),
        )
        slots = torch.tensor(free, device=self.slots.device)
        for columns in (self.slots_SN(), self.exp_avg, self.exp_avg_sq, self.updates, self.memory):
            columns.index_fill_(0, slots, 0)
        for size in {len(one) for one in params}:
            rows = [row for row, one in enumerate(params) if len(one) == size]
            bytes_GN = torch.stack([params[row] for row in rows]).to(self.slots)
            self.slots_SN()[:, :size].index_copy_(0, slots[torch.tensor(rows, device=slots.device)], bytes_GN)
        for graft, slot in zip(grafts, free, strict=True):
            self.grafts[graft.lifecycle] = replace(graft, slot=slot, is_rising=True)
        self.regroup()
        for graft in grafts:
            for name, norm in copied_norms(graft, hosts):
                for key, buffer in self.statistics[name].named_buffers():
                    buffer.copy_(norm.get_buffer(key))

    def settle(self, *lifecycles: int) -> None:
        """Note that grafts are not being blended in any more; they may have left already."""
        rising = [self.grafts[one] for one in lifecycles if one in self.grafts and self.grafts[one].is_rising]
        for graft in rising:
            self.grafts[graft.lifecycle] = replace(graft, is_rising=False)
        if rising:
            self._index()

    @torch.no_grad()
    def remove(self, *lifecycles: int) -> None:
        """Take grafts out, leaving no trace. The last one's leaving returns the memory."""
        for lifecycle in lifecycles:
            self.grafts.pop(lifecycle)
        if not self.live:
            self._resize(0, 0, 0)
        self.regroup()

    @torch.no_grad()
    def fossilize(self, *lifecycles: int) -> None:
        """Move live grafts' bytes out of their slots into buffers, for good.

        A fossil joins the last group that it may run with, or founds one: it must not run before a fossil that writes
        its channels. It ran after all of them while it was live, and both sums and ``reads="chunk"`` depend on the
        order.
        """
        batches = [_Batch(self.num_channels, group) for group in self.fossils]
        joined: dict[int, list[Tensor]] = {}
        for lifecycle in lifecycles:
            graft = self.grafts[lifecycle]
            fossil = replace(graft, slot=None, strategy=FixedRamp(), is_rising=False)  # it rises no more
            index = len(batches)
            for earlier in reversed(range(len(batches))):
                if batches[earlier].fits(fossil):
                    index = earlier
                if index == earlier or batches[earlier].overlaps(fossil):
                    break
            if index == len(batches):
                batches.append(_Batch(self.num_channels, []))
            batches[index].add(fossil)
            joined.setdefault(index, []).append(self.params_of(graft).detach())
        for index, params in joined.items():
            bytes_GN = torch.stack(params)
            if index < len(self.fossils):
                self._buffers[f"fossils_{index}"] = torch.cat([self.fossil_bytes(index), bytes_GN])
            else:
                self.register_buffer(f"fossils_{index}", bytes_GN)
        self.fossils = [batch.grafts for batch in batches]
        self.remove(*lifecycles)

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
        batches: list[_Batch] = []
        for graft in self.live:
            batch = next((one for one in batches if one.fits(graft)), None)
            if batch is None:
                batch = _Batch(self.num_channels, [])
                batches.append(batch)
            batch.add(graft)
        members = [*self.fossils, *(batch.grafts for batch in batches)]
        device, before = self.slots.device, list(self.groups)
        self._keep_statistics([graft for grafts in members for graft in grafts])
        self.groups = nn.ModuleList(self._group(grafts, device) for grafts in members)
        self._index()
        is_colony = any(isinstance(group, Colony) for group in (*before, *self.groups))
        for activity in self.activities:
            activity.count((len(self.groups) > 0) - (len(before) > 0), is_colony=is_colony)
        self._open()

    def take(self, grafts: Iterable[Graft]) -> None:
        """Note grafts that are not live yet."""
        self.grafts |= {graft.lifecycle: graft for graft in grafts}
        self._open()

    def _open(self) -> None:
        """Have a compiled model call the place from the first graft on. A colony is compiled with the host."""
        grafts = [*self.grafts.values(), *(graft for group in self.fossils for graft in group)]
        if self.activities and any(graft.ports.pieces is None for graft in grafts):
            self.activities[0].called.open(self.activities)

    def _group(self, grafts: list[Graft], device: torch.device) -> Group | Colony:
        if grafts[0].ports.pieces is None:
            return Group(grafts, self.num_channels, device)
        (graft,) = grafts  # a colony writes all channels of its place, so it is alone
        return Colony(graft, self.name, self.statistics, device)

    def _keep_statistics(self, grafts: Iterable[Graft]) -> None:
        needed = {name: channels for graft in grafts for name, channels in statistics_of(graft).items()}
        for name in self.statistics.keys() - needed.keys():
            del self.statistics[name]
        for name in [name for name in needed if name not in self.statistics]:
            self.statistics[name] = ChannelStatistics(needed[name]).to(self.slots.device)

    def _index(self) -> None:
        """Recompute what is looked up by slot or lifecycle; plain tensors, as they follow from the topology."""
        device, live = self.slots.device, self.live
        self._seats = {
            graft.lifecycle: (group, index)
            for group in self.groups
            if isinstance(group, Group | Colony) and group.is_live
            for index, graft in enumerate(group.grafts)
        }
        in_slot = {graft.slot: graft for graft in live}
        slots = [in_slot.get(slot) for slot in range(self.num_slots)]
        self.slot_seeds = torch.tensor([0 if one is None else one.seeds[0] for one in slots], device=device).long()
        self.slot_trains = torch.tensor(
            [one is not None and one.blueprint.is_trainable for one in slots], dtype=torch.bool, device=device
        )
        rates = [1.0 if one is None else one.blueprint.rate_at(one.ports) for one in slots]
        self.slot_rates = torch.tensor(rates, dtype=torch.float32, device=device).unsqueeze(1)
        rising: dict[GraftStrategy, list[Graft]] = {}
        for graft in live:
            if graft.is_rising and graft.strategy.needs_signals:
                rising.setdefault(graft.strategy, []).append(graft)
        self.ramps = [_ramp(strategy, grafts, device) for strategy, grafts in rising.items()]

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


class _Batch:
    """Grafts that may run as one batch: same recipe and shape, no channel written twice."""

    def __init__(self, num_channels: int, grafts: Iterable[Graft]) -> None:
        self.grafts: list[Graft] = []
        self._is_written = bytearray(num_channels)
        for graft in grafts:
            self.add(graft)

    def add(self, graft: Graft) -> None:
        first, end = graft.channels
        self.grafts.append(graft)
        self._is_written[first:end] = bytes([1]) * (end - first)

    def overlaps(self, graft: Graft) -> bool:
        """Whether a graft writes a channel that one of the batch writes."""
        return any(self._is_written[slice(*graft.channels)])

    def fits(self, graft: Graft) -> bool:
        """Whether a graft may join."""
        return _shape(graft) == _shape(self.grafts[0]) and not self.overlaps(graft)


def _shape(graft: Graft) -> tuple[object, ...]:
    """What grafts of one batch have in common."""
    return graft.blueprint, graft.ports, graft.channels[1] - graft.channels[0]


def _ramp(strategy: GraftStrategy, grafts: list[Graft], device: torch.device) -> Ramp:
    owned = [(seed, owner) for owner, graft in enumerate(grafts) for seed in range(*graft.seeds)]
    slots = [graft.slot for graft in grafts]
    seeds, owners = torch.tensor(owned, device=device).unbind(1)
    return Ramp(strategy, torch.tensor(slots, device=device), seeds, owners)
