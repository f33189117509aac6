"""What always holds of a place's seeds, grafts and arena, whatever the run does. For debugging: it reads everything.

Every rule says in words what does not hold, and of which seed; a place that is well has nothing to say.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.kernels.adamw.reference import trainable
from esper.kasmina.places.place import Place

Columns = dict[str, list[Any]]
"""The columns of a place's state, as lists."""

FALLING = frozenset({State.CULLED, State.CANCELLED})
SETTLED = LIVE - {State.GRAFTING}
MOVING = FALLING | LIVE | {State.ROLLED_BACK}
"""States in which alpha may be above 0."""

_COUNTERS = ("steps_in_state", "epochs_in_state", "ramp_steps", "embargo_epochs", "version", "progress")


def violations(place: Place) -> list[str]:
    """What does not hold at a place; waits for the device.

    Returns:
        A sentence for everything, with the seed that it is about.
    """
    columns: Columns = {name: column.tolist() for name, column in place.state.named_buffers()}
    illegal = list(_legal(place, columns))
    return illegal or list(chain.from_iterable(rule(place, columns) for rule in RULES))


def frozen_bytes(place: Place) -> list[Tensor]:
    """A copy of all parameters that an optimizer's step must leave as they are: fossils, and slots that rest now."""
    arena = place.arena
    fossils = [arena.fossil_bytes(index).clone() for index in range(len(arena.fossils))]
    if not arena.num_slots:
        return fossils
    moves_S = trainable(place.state.lifecycle)[arena.slot_seeds] & arena.slot_trains
    return [arena.slots_SN().detach()[~moves_S].clone(), *fossils]


def same_bytes(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether two of :func:`frozen_bytes` are equal, NaN with NaN."""
    return len(before) == len(after) and all(map(_equal, before, after))


def _equal(one: Tensor, other: Tensor) -> bool:
    return (
        one.shape == other.shape
        and torch.equal(one.isnan(), other.isnan())
        and torch.equal(one.nan_to_num(), other.nan_to_num())
    )


def _legal(place: Place, columns: Columns) -> Iterator[str]:
    known = {int(state) for state in State}
    for seed, code in enumerate(columns["lifecycle"]):
        if code not in known:
            yield f"seed {seed} has the state {code}, which there is not"


def _alphas(place: Place, columns: Columns) -> Iterator[str]:
    for seed, (code, alpha) in enumerate(zip(columns["lifecycle"], columns["alpha"], strict=True)):
        state = State(code)
        if not 0 <= alpha <= 1:
            yield f"seed {seed} has alpha {alpha:g}, outside [0, 1]"
        elif state not in MOVING and alpha:
            yield f"seed {seed} is {state.name} and has alpha {alpha:g}, where it is 0"
        elif state in SETTLED and alpha != 1:
            yield f"seed {seed} is {state.name} and has alpha {alpha:g}, where it is 1"


def _counters(place: Place, columns: Columns) -> Iterator[str]:
    for name in _COUNTERS:
        for seed, value in enumerate(columns[name]):
            if not value >= 0:
                yield f"seed {seed} has {name} {value:g}, below 0"
    for seed, fault in enumerate(columns["fault"]):
        if fault not in range(4):
            yield f"seed {seed} has the fault {fault}, which there is not"


def _lifecycles(place: Place, columns: Columns) -> Iterator[str]:
    """A seed rests without a lifecycle; one with a live graft has that graft, alone."""
    owners: dict[int, int] = {}
    for graft in place.arena.grafts.values():
        for seed in range(*graft.seeds):
            if seed in owners:
                yield f"seed {seed} has the grafts of lifecycles {owners[seed]} and {graft.lifecycle}"
            owners[seed] = graft.lifecycle
    live = {graft.lifecycle for graft in place.arena.live}
    for seed, (code, number) in enumerate(zip(columns["lifecycle"], columns["lifecycle_id"], strict=True)):
        state = State(code)
        if (number == 0) != (state is State.DORMANT):
            yield f"seed {seed} is {state.name} in lifecycle {number}, where only DORMANT ones have lifecycle 0"
        elif state in LIVE and number not in live:
            yield f"seed {seed} is {state.name} in lifecycle {number}, which has no live graft"
        elif seed in owners and owners[seed] != number:
            yield f"seed {seed} is in lifecycle {number} and has the graft of lifecycle {owners[seed]}"


def _grafts(place: Place, columns: Columns) -> Iterator[str]:
    """A graft is of one state, and lies on the channels of its seeds."""
    for number, graft in place.arena.grafts.items():
        name, seeds = _named(graft), range(*graft.seeds)
        if number != graft.lifecycle:
            yield f"{name} is kept as that of lifecycle {number}"
        if not (0 <= graft.seeds[0] < graft.seeds[1] <= place.state.num_seeds):
            yield f"{name} has seeds {graft.seeds[0]} to {graft.seeds[1] - 1}, and there are {place.state.num_seeds}"
            continue
        if graft.channels != (place.bounds[graft.seeds[0]], place.bounds[graft.seeds[1]]):
            yield f"{name} writes channels {graft.channels}, which are not those of its seeds"
        for column in ("lifecycle", "alpha", "version"):
            if len({columns[column][seed] for seed in seeds}) > 1:
                yield f"{name} has seeds that differ in {column}: {[columns[column][seed] for seed in seeds]}"
        if graft.is_rising and columns["lifecycle"][seeds[0]] != State.GRAFTING:
            yield f"{name} rises while it is {State(columns['lifecycle'][seeds[0]]).name}"


def _slots(place: Place, columns: Columns) -> Iterator[str]:
    """Every live graft has a slot of its own, and the columns of slots are of one size."""
    arena, owners = place.arena, dict[int, int]()
    for graft in arena.live:
        assert graft.slot is not None
        if graft.slot in owners:
            yield f"{_named(graft)} and that of lifecycle {owners[graft.slot]} are both in slot {graft.slot}"
        owners[graft.slot] = graft.lifecycle
        if not 0 <= graft.slot < arena.num_slots or graft.num_parameters > arena.slot_size:
            size = f"{arena.num_slots} slots of {arena.slot_size}"
            yield f"{_named(graft)} has {graft.num_parameters} parameters in slot {graft.slot}; there are {size}"
        elif int(arena.slot_seeds[graft.slot]) != graft.seeds[0]:
            yield f"{_named(graft)} is in slot {graft.slot}, which names seed {int(arena.slot_seeds[graft.slot])}"
    rows = arena.num_slots
    sizes = {"slots": arena.slots.numel() == rows * arena.slot_size, "updates": arena.updates.numel() == rows}
    sizes |= {name: len(getattr(arena, name)) == rows for name in ("exp_avg", "exp_avg_sq", "memory", "slot_trains")}
    for name, fits in sizes.items():
        if not fits:
            yield f"its {name} are not of {rows} slots"


def _fossils(place: Place, columns: Columns) -> Iterator[str]:
    for index, group in enumerate(place.arena.fossils):
        shape, wanted = tuple(place.arena.fossil_bytes(index).shape), (len(group), group[0].num_parameters)
        if shape != wanted:
            yield f"its fossils {[one.lifecycle for one in group]} have bytes of shape {shape}, not {wanted}"


RULES: tuple[Callable[[Place, Columns], Iterator[str]], ...] = (
    *(_alphas, _counters, _lifecycles),
    *(_grafts, _slots, _fossils),
)


def _named(graft: Graft) -> str:
    return f"seed {graft.seeds[0]}: the graft of lifecycle {graft.lifecycle}"
