"""Makes transitions so: applies commands to the state of a place, all or nothing."""

from dataclasses import dataclass

import torch
from torch import Tensor

from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Command, SeedId
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import LIVE, OUTCOMES, State, check_transition
from esper.kasmina.graft import Graft
from esper.kasmina.place import Place
from esper.kasmina.strategies import STRATEGIES, strategy_kind


@dataclass(frozen=True, slots=True)
class Birth:
    """What a command to germinate needs besides the command itself.

    Args:
        lifecycle: number of the new lifecycle.
        ramp_steps: steps in which its alpha will rise.
    """

    lifecycle: int
    ramp_steps: int


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


def transition(
    place: Place,
    command: Command,
    *,
    birth: Birth | None = None,
    embargo_epochs: int = 0,
    quarantine_epochs: int = 0,
) -> int:
    """Move the seeds that a command names to its target, with everything that belongs to it.

    Args:
        place: the place.
        command: what to do; its ``layer_id`` is the place's.
        birth: for GERMINATED.
        embargo_epochs: for CULLED: epochs until the seeds may germinate again.
        quarantine_epochs: for ROLLED_BACK: the same.

    Returns:
        The seeds' new version.

    Raises:
        TransitionError: if the table does not list the transition, the version is stale, the seeds do not share one
            state and lifecycle, or they are to wake while their graft is still blended out.
        ConfigError: if blueprint or strategy do not exist, or the blueprint cannot grow here.
    """
    first, end = seed_range(place, command.seed_id)
    state, target, seeds = place.state, command.target, slice(first, end)
    name = f"Seed {command.seed_id} of {place.layer_id!r}"
    current = _common(state.lifecycle[seeds], name, "state")
    lifecycle = _common(state.lifecycle_id[seeds], name, "lifecycle")
    if lifecycle and int((state.lifecycle_id == lifecycle).sum()) != end - first:
        raise TransitionError(f"{name} grows as part of a group. Address the group: seed 'all'.")
    version = int(state.version[seeds].max())
    if command.version is not None and command.version != version:
        raise TransitionError(f"{name} is at version {version}; the command was for version {command.version}.")
    check_transition(name, State(current), target)

    if target is State.GERMINATED:
        assert birth is not None
        _germinate(place, command, birth, (first, end), name)
    elif target is State.GRAFTING:
        graft = place.arena.grafts[lifecycle]
        trained = place.incubation.take(lifecycle)
        place.arena.plant(graft, graft.birth(place.seed) if trained is None else trained)
        state.progress[seeds] = 0
    elif target is State.FOSSILIZED:
        place.arena.fossilize(lifecycle)
    elif target in OUTCOMES and State(current) not in LIVE:
        place.incubation.discard(lifecycle)
        place.arena.grafts.pop(lifecycle, None)
    elif target is State.DORMANT and lifecycle in place.arena.grafts:
        raise TransitionError(f"{name} still blends out its graft.")

    if target is not State.GRAFTING:
        place.arena.settle(lifecycle)
    state.lifecycle[seeds] = target
    state.version[seeds] = version + 1
    state.steps_in_state[seeds] = 0
    state.epochs_in_state[seeds] = 0
    if target in (State.CULLED, State.ROLLED_BACK):
        state.embargo_epochs[seeds] = embargo_epochs if target is State.CULLED else quarantine_epochs
    if (target in OUTCOMES and State(current) not in LIVE) or target is State.FOSSILIZED:
        state.alpha[seeds] = 0
    if target is State.DORMANT:
        for column in ("alpha", "progress", "ramp_steps", "strategy", "fault", "lifecycle_id", "embargo_epochs"):
            getattr(state, column)[seeds] = 0
    return version + 1


def discard(place: Place, lifecycle: int) -> None:
    """Remove a graft at once, blended out or not: its seeds stay where they are, at alpha 0."""
    graft = place.arena.grafts[lifecycle]
    place.incubation.discard(lifecycle)
    place.arena.remove(lifecycle)
    place.state.alpha[slice(*graft.seeds)] = 0


def is_finite(place: Place, lifecycle: int) -> bool:
    """Whether all parameters of a live graft are finite."""
    graft = place.arena.grafts[lifecycle]
    return graft.slot is None or bool(torch.isfinite(place.arena.params_of(graft)).all())


def _germinate(place: Place, command: Command, birth: Birth, seeds: tuple[int, int], name: str) -> None:
    strategy = strategy_kind(command.strategy).configured(place.config)
    if command.blueprint is None:
        raise ConfigError("A command to germinate must name a blueprint.")
    blueprint = make_blueprint(command.blueprint, command.settings)
    channels = place.bounds[seeds[0]], place.bounds[seeds[1]]
    width = channels[1] - channels[0]
    inputs = width if blueprint.reads == "chunk" else place.ports.inputs
    ports = place.ports._replace(inputs=inputs, outputs=width, layout=place.layout_for(blueprint.reads))
    misfit = blueprint.misfit(ports)
    if misfit is not None:
        raise ConfigError(f"Blueprint {blueprint.id!r} cannot grow at {name}: {misfit}.")
    place.arena.grafts[birth.lifecycle] = Graft(birth.lifecycle, seeds, channels, ports, blueprint, strategy)
    selected = slice(*seeds)
    place.state.lifecycle_id[selected] = birth.lifecycle
    place.state.ramp_steps[selected] = birth.ramp_steps
    place.state.strategy[selected] = list(STRATEGIES).index(command.strategy)


def _common(values: Tensor, name: str, what: str) -> int:
    distinct = torch.unique(values).tolist()
    if len(distinct) != 1:
        raise TransitionError(f"{name}: its seeds do not share one {what}. Address them one by one.")
    return int(distinct[0])
