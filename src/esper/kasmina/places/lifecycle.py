"""Makes transitions so: applies commands to the state of places, all or nothing.

A command names one seed or many, at one place or at several. All that could refuse it is checked for all of them before
anything moves; then each place is written once, whatever the number of its seeds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Command, SeedId
from esper.contracts.errors import ConfigError, TransitionError, closest
from esper.contracts.lifecycle import LIVE, OUTCOMES, State, check_transition
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.guard import finite_G
from esper.kasmina.grafts.strategies import STRATEGIES, strategy_kind
from esper.kasmina.places.place import Place


@dataclass(frozen=True, slots=True)
class Birth:
    """What a command to germinate needs besides the command itself.

    Args:
        lifecycle: number of the new lifecycle, the first of several.
        ramp_steps: steps in which alpha will rise.
    """

    lifecycle: int
    ramp_steps: int


class Moved(NamedTuple):
    """One lifecycle that a command has moved.

    Args:
        layer_id: its place.
        seed_id: its seed, or ``"all"``.
        source: the state that it was in.
        lifecycle: its number.
        version: the new version of its seeds.
    """

    layer_id: str
    seed_id: SeedId
    source: State
    lifecycle: int
    version: int


def seed_range(place: Place, seed_id: SeedId) -> tuple[int, int]:
    """First seed that an address means, and the end.

    Raises:
        TransitionError: if the place has no such seed.
    """
    if seed_id == "all":
        return 0, place.state.num_seeds
    if not isinstance(seed_id, int) or not 0 <= seed_id < place.state.num_seeds:
        raise TransitionError(
            f"{place.layer_id!r} has no seed {seed_id!r}. It has seeds 0 to {place.state.num_seeds - 1}, or 'all'."
        )
    return seed_id, seed_id + 1


def check_addresses(places: Mapping[str, Place], command: Command) -> None:
    """Raise TransitionError if a command names no seed, or one that is nowhere."""
    if not command.addresses:
        raise TransitionError("The command names no seed. Name one, several, or 'all'.")
    for layer_id, seed_id in command.addresses:
        if layer_id not in places:
            raise TransitionError(f"There is no place {layer_id!r}. {closest(str(layer_id), places)}")
        seed_range(places[layer_id], seed_id)


def transition(
    place: Place,
    command: Command,
    *,
    birth: Birth | None = None,
    embargo_epochs: int = 0,
    quarantine_epochs: int = 0,
) -> list[Moved]:
    """As :func:`move`, of a command that names seeds of one place."""
    return move({place.layer_id: place}, command, birth, embargo_epochs, quarantine_epochs)


def move(
    places: Mapping[str, Place], command: Command, birth: Birth | None, embargo_epochs: int, quarantine_epochs: int
) -> list[Moved]:
    """Move the seeds that a command names to its target, with everything that belongs to it.

    Args:
        places: by ``layer_id``.
        command: what to do.
        birth: for GERMINATED.
        embargo_epochs: for CULLED: epochs until the seeds may germinate again.
        quarantine_epochs: for ROLLED_BACK: the same.

    Returns:
        Every lifecycle that has moved, in the order of the command's addresses.

    Raises:
        TransitionError: for any of the seeds: if there is none, it is named twice, the table does not list the
            transition, the version is stale, seeds of one lifecycle are not all named, or they are to wake while
            their graft is still blended out.
        ConfigError: if blueprint or strategy do not exist, or the blueprint cannot grow there.
    """
    addresses, versions = command.addresses, command.versions
    check_addresses(places, command)
    if len(versions) != len(addresses):
        raise TransitionError(
            f"The command names {len(addresses)} seeds and {len(versions)} versions. Give one version for each."
        )
    moves = {layer_id: _Move(places[layer_id], command.target) for layer_id in dict(addresses)}
    for (layer_id, seed_id), version in zip(addresses, versions, strict=True):
        moves[layer_id].take_in(seed_id, version)
    if command.target is State.GERMINATED:
        assert birth is not None
        number = birth.lifecycle
        for one in moves.values():
            one.conceive(command, number, birth.ramp_steps)
            number += len(one.spans)
    for one in moves.values():
        one.make({State.CULLED: embargo_epochs, State.ROLLED_BACK: quarantine_epochs}.get(command.target))
    told = {layer_id: iter(one.told()) for layer_id, one in moves.items()}
    return [next(told[layer_id]) for layer_id, _ in addresses]


def discard(place: Place, *lifecycles: int) -> None:
    """Remove grafts at once, blended out or not: their seeds stay where they are, at alpha 0."""
    seeds = [seed for one in lifecycles for seed in range(*place.arena.grafts[one].seeds)]
    for lifecycle in lifecycles:
        place.incubation.discard(lifecycle)
    place.arena.remove(*lifecycles)
    place.state.alpha[seeds] = 0


def is_finite(place: Place, lifecycle: int) -> bool:
    """Whether all parameters of a live graft are finite."""
    return are_finite(place, [lifecycle])[0]


def are_finite(place: Place, lifecycles: Sequence[int]) -> list[bool]:
    """Whether all parameters of each graft are finite; those of one that is not live yet are. Reads from the device."""
    slots = {one: slot for one in lifecycles if (slot := place.arena.grafts[one].slot) is not None}
    if not slots:
        return [True] * len(lifecycles)
    rows = finite_G(place.arena.slots_SN()[list(slots.values())]).tolist()
    found = dict(zip(slots, rows, strict=True))
    return [found.get(one, True) for one in lifecycles]


@dataclass
class _Move:
    """A transition of seeds of one place. Until :meth:`make` it changes nothing, and that cannot be refused.

    Attributes:
        spans: first seed of each lifecycle, and the end.
    """

    place: Place
    target: State
    spans: list[tuple[int, int]] = field(default_factory=list)
    _seed_ids: list[SeedId] = field(default_factory=list)
    _sources: list[State] = field(default_factory=list)
    _lifecycles: list[int] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)
    _born: list[Graft] = field(default_factory=list)
    _strategy: int = 0
    _ramp_steps: int = 0

    def __post_init__(self) -> None:
        state = self.place.state  # waits for the device, once a command
        rows = torch.stack([state.lifecycle.int(), state.lifecycle_id, state.version]).tolist()
        self._codes, self._owners, self._old_versions = rows
        self._counts, self._named = Counter(self._owners), set[int]()

    def take_in(self, seed_id: SeedId, expected: int | None) -> None:
        """Check an address and take it in."""
        place, target = self.place, self.target
        first, end = seed_range(place, seed_id)
        name = f"Seed {seed_id} of {place.layer_id!r}"
        seeds = range(first, end)
        if not self._named.isdisjoint(seeds):
            raise TransitionError(f"{name} is named twice. Name every seed once.")
        self._named.update(seeds)
        current = State(_common(self._codes[first:end], name, "state"))
        lifecycle = _common(self._owners[first:end], name, "lifecycle")
        if lifecycle and self._counts[lifecycle] != end - first:
            raise TransitionError(f"{name} grows as part of a group. Address the group: seed 'all'.")
        version = max(self._old_versions[first:end])
        if expected is not None and expected != version:
            raise TransitionError(f"{name} is at version {version}; the command was for version {expected}.")
        check_transition(name, current, target)
        if target is State.DORMANT and lifecycle in place.arena.grafts:
            raise TransitionError(f"{name} still blends out its graft.")
        self.spans.append((first, end))
        self._seed_ids.append(seed_id)
        self._sources.append(current)
        self._lifecycles.append(lifecycle)
        self._versions.append(version + 1)

    def conceive(self, command: Command, number: int, ramp_steps: int) -> None:
        """Make the grafts that will germinate, of lifecycles from ``number`` on."""
        place = self.place
        strategy = strategy_kind(command.strategy).configured(place.config)
        if command.blueprint is None:
            raise ConfigError("A command to germinate must name a blueprint.")
        blueprint = make_blueprint(command.blueprint, command.settings)
        fits = set()
        for seed_id, (first, end) in zip(self._seed_ids, self.spans, strict=True):
            channels = place.bounds[first], place.bounds[end]
            ports = place.ports_of(blueprint, first, end)
            if ports not in fits and (misfit := blueprint.misfit(ports)) is not None:
                name = f"Seed {seed_id} of {place.layer_id!r}"
                raise ConfigError(f"Blueprint {blueprint.id!r} cannot grow at {name}: {misfit}.")
            fits.add(ports)
            self._born.append(Graft(number + len(self._born), (first, end), channels, ports, blueprint, strategy))
        self._lifecycles = [graft.lifecycle for graft in self._born]
        self._strategy, self._ramp_steps = list(STRATEGIES).index(command.strategy), ramp_steps

    def make(self, rest_epochs: int | None) -> None:
        """Move all that was taken in; ``rest_epochs`` is the embargo or quarantine that follows."""
        place, target, state = self.place, self.target, self.place.state
        early = [one for one, source in zip(self._lifecycles, self._sources, strict=True) if source not in LIVE]
        if target is State.GERMINATED:
            place.arena.take(self._born)
            self._write(lifecycle_id=self._lifecycles, ramp_steps=self._ramp_steps, strategy=self._strategy)
        elif target is State.GRAFTING:
            self._plant()
            self._write(alpha=0, progress=0)
        elif target is State.FOSSILIZED:
            place.arena.fossilize(*self._lifecycles)
            self._write(alpha=0)
        elif target in OUTCOMES:
            for lifecycle in early:
                place.incubation.discard(lifecycle)
                place.arena.grafts.pop(lifecycle, None)
            is_early = [0.0 if source not in LIVE else 1.0 for source in self._sources]
            state.alpha[self._seeds] *= self._of_each(is_early, torch.float32)
        elif target is State.DORMANT:
            self._write(alpha=0, progress=0, ramp_steps=0, strategy=0, fault=0, lifecycle_id=0, embargo_epochs=0)
        if target is not State.GRAFTING:
            place.arena.settle(*self._lifecycles)
        if rest_epochs is not None:
            self._write(embargo_epochs=rest_epochs)
        self._write(lifecycle=int(target), version=self._versions, steps_in_state=0, epochs_in_state=0)

    def told(self) -> list[Moved]:
        """What has moved."""
        columns = self._seed_ids, self._sources, self._lifecycles, self._versions
        return [Moved(self.place.layer_id, *one) for one in zip(*columns, strict=True)]

    def _plant(self) -> None:
        place, params = self.place, []
        grafts = [place.arena.grafts[one] for one in self._lifecycles]
        for graft in grafts:
            trained = place.incubation.take(graft.lifecycle)
            params.append(graft.birth(place.seed, place.hosts) if trained is None else trained)
        place.arena.plant(grafts, params, place.hosts)

    def _write(self, **columns: int | list[int]) -> None:
        """Write columns of the state: one value for all, or one for each lifecycle."""
        for name, value in columns.items():
            column = getattr(self.place.state, name)
            column[self._seeds] = self._of_each(value, column.dtype) if isinstance(value, list) else value

    @cached_property
    def _seeds(self) -> Tensor | slice:
        if len(self.spans) == 1:
            return slice(*self.spans[0])
        return torch.tensor([first for first, _ in self.spans], device=self.place.state.alpha.device)

    def _of_each(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """``[lifecycles]``; what a lifecycle of several seeds gets, which is always alone, is for all of them."""
        return torch.tensor(values, dtype=dtype, device=self.place.state.alpha.device)


def _common(values: Sequence[int], name: str, what: str) -> int:
    distinct = set(values)
    if len(distinct) != 1:
        raise TransitionError(f"{name}: its seeds do not share one {what}. Address them one by one.")
    return distinct.pop()
