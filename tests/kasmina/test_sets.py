"""Commands that name several seeds, at one place or at several: all of them or none."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import OUTCOMES, TRANSITIONS, State
from esper.kasmina.grafts.arena import Arena
from esper.kasmina.host.anchoring import places
from esper.kasmina.places.lifecycle import Birth, discard, move, transition
from esper.kasmina.places.place import Place
from tests.kasmina.growing import PATH, mlp, wrapped
from tests.kasmina.lone import lone_place

RECIPE = {"blueprint": "bottleneck_mlp", "settings": {"hidden": 2}}


def photograph(place: Place) -> tuple:
    tensors = {name: tensor.clone() for name, tensor in place.state_dict().items()}
    return tensors, place.arena.topology(), [id(group) for group in place.arena.groups]


def unchanged(place: Place, before: tuple) -> bool:
    after = photograph(place)
    return after[1:] == before[1:] and all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


def promote(place: Place, seed_ids, until: State) -> None:
    for target in PATH[: PATH.index(until) + 1]:
        transition(place, Command("fc", seed_ids, target, **RECIPE), birth=Birth(1, ramp_steps=4))


def several() -> dict[str, Place]:
    """Places ``"0"`` with 3 seeds and ``"2"`` with 4 of one model."""
    model = wrapped(mlp(6, 8, 4), {"0": 3, "2": 4})
    return {place.layer_id: place for place in places(model)}


# One place


def test_each_seed_of_a_set_gets_a_graft_and_a_lifecycle_of_its_own():
    place = lone_place()
    command = Command("fc", (3, 0, 1), State.GERMINATED, **RECIPE)
    moved = transition(place, command, birth=Birth(5, ramp_steps=4))
    assert [(one.seed_id, one.lifecycle, one.source, one.version) for one in moved] == [
        (3, 5, State.DORMANT, 1),
        (0, 6, State.DORMANT, 1),
        (1, 7, State.DORMANT, 1),
    ]
    assert place.state.lifecycle_id.tolist() == [6, 7, 0, 5]
    assert place.state.ramp_steps.tolist() == [4, 4, 0, 4]
    assert {number: graft.channels for number, graft in place.arena.grafts.items()} == {
        5: (8, 11),
        6: (0, 2),
        7: (2, 5),
    }


@pytest.mark.parametrize("until", PATH, ids=lambda state: state.name)
def test_a_set_ends_where_its_seeds_would_end_one_by_one(until):
    """To the byte, whatever the order of the transitions."""
    together, one_by_one = lone_place(), lone_place()
    seed_ids = (0, 1, 3)
    for target in PATH[: PATH.index(until) + 1]:
        transition(together, Command("fc", seed_ids, target, **RECIPE), birth=Birth(1, ramp_steps=4))
        for number, seed_id in enumerate(seed_ids, start=1):
            transition(one_by_one, Command("fc", seed_id, target, **RECIPE), birth=Birth(number, ramp_steps=4))
    assert together.arena.topology() == one_by_one.arena.topology()
    state, expected = together.state_dict(), one_by_one.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("state", [State.GERMINATED, State.TRAINING, State.GRAFTING, State.FINE_TUNING])
def test_one_seed_that_may_not_move_refuses_the_whole_set(state):
    place = lone_place()
    promote(place, (0, 1), state)
    before = photograph(place)
    target = PATH[PATH.index(state) + 1]
    with pytest.raises(TransitionError, match=f"Seed 2 of 'fc' cannot go from DORMANT to {target.name}"):
        transition(place, Command("fc", (0, 1, 2), target))
    assert unchanged(place, before)


def test_a_set_is_ended_whatever_the_states_of_its_seeds():
    """Who is not blended in yet leaves at once; who is, keeps its graft and its alpha."""
    place = lone_place()
    promote(place, (0,), State.TRAINING)
    transition(place, Command("fc", (1,), State.GERMINATED, **RECIPE), birth=Birth(2, ramp_steps=4))
    for target in PATH[1:4]:
        transition(place, Command("fc", (1,), target))
    place.state.alpha[1] = 0.75
    moved = transition(place, Command("fc", (1, 0), State.CULLED), embargo_epochs=5)
    assert [one.source for one in moved] == [State.STABILIZATION, State.TRAINING]
    assert list(place.arena.grafts) == [2]
    assert place.state.alpha.tolist() == [0, 0.75, 0, 0]
    assert place.state.embargo_epochs.tolist() == [5, 5, 0, 0]


REFUSED = {
    "twice": ({"seed_id": (0, 1, 0)}, "Seed 0 of 'fc' is named twice"),
    "one and all": ({"seed_id": (1, "all")}, "Seed all of 'fc' is named twice"),
    "nowhere": ({"seed_id": (0, 4)}, "'fc' has no seed 4"),
    "none": ({"seed_id": ()}, "names no seed"),
    "stale": ({"seed_id": (0, 1), "version": (0, 7)}, "Seed 1 of 'fc' is at version 0; the command was for version 7"),
    "all of them at one": ({"seed_id": (0, 1), "version": 3}, "Seed 0 of 'fc' is at version 0"),
    "too few versions": ({"seed_id": (0, 1), "version": (0,)}, "names 2 seeds and 1 versions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_set_is_said_and_changes_nothing(name):
    fields, message = REFUSED[name]
    place = lone_place()
    before = photograph(place)
    with pytest.raises(TransitionError, match=message):
        transition(place, Command("fc", target=State.GERMINATED, **RECIPE, **fields), birth=Birth(1, ramp_steps=4))
    assert unchanged(place, before)


def test_versions_that_hold_are_accepted():
    place = lone_place()
    promote(place, (0, 1), State.TRAINING)
    transition(place, Command("fc", (3,), State.GERMINATED, **RECIPE), birth=Birth(9, ramp_steps=4))
    moved = transition(place, Command("fc", (3, 0, 1), State.CANCELLED, version=(1, 2, 2)))
    assert [one.version for one in moved] == [2, 3, 3]


def test_a_set_that_does_not_fit_at_one_of_its_seeds_is_refused():
    """The first seed has two channels, which can be normalised; by itself a seed of one channel cannot."""
    place = lone_place(num_seeds=8)
    assert [end - first for first, end in zip(place.bounds, place.bounds[1:], strict=False)][:3] == [1, 1, 2]
    before = photograph(place)
    command = Command("fc", (2, 0), State.GERMINATED, blueprint="norm_affine")
    with pytest.raises(ConfigError, match="cannot grow at Seed 0 of 'fc'"):
        transition(place, command, birth=Birth(1, ramp_steps=4))
    assert unchanged(place, before)


# Several places


def test_an_order_reaches_several_places():
    there = several()
    command = Command("2", (1, 3), State.GERMINATED, **RECIPE, also={"0": 2})
    moved = move(there, command, Birth(1, ramp_steps=4), 0, 0)
    assert [(one.layer_id, one.seed_id, one.lifecycle) for one in moved] == [("2", 1, 1), ("2", 3, 2), ("0", 2, 3)]
    assert there["2"].state.lifecycle_id.tolist() == [0, 1, 0, 2]
    assert there["0"].state.lifecycle_id.tolist() == [0, 0, 3]


@pytest.mark.parametrize("also", [{"0": 9}, {"0": (0, 9)}, {"nowhere": 0}, {"2": 1}], ids=str)
def test_what_is_wrong_at_one_place_leaves_the_others_alone(also):
    there = several()
    before = {name: photograph(place) for name, place in there.items()}
    command = Command("2", (1, 3), State.GERMINATED, **RECIPE, also=also)
    with pytest.raises(TransitionError):
        move(there, command, Birth(1, ramp_steps=4), 0, 0)
    assert all(unchanged(place, before[name]) for name, place in there.items())


def test_a_transition_that_one_place_does_not_allow_is_made_at_none():
    there = several()
    move(there, Command("2", (1, 3), State.GERMINATED, **RECIPE), Birth(1, ramp_steps=4), 0, 0)
    before = {name: photograph(place) for name, place in there.items()}
    with pytest.raises(TransitionError, match="Seed 2 of '0' cannot go from DORMANT to TRAINING"):
        move(there, Command("2", (1, 3), State.TRAINING, also={"0": 2}), None, 0, 0)
    assert all(unchanged(place, before[name]) for name, place in there.items())


# Any stream of them

LAYOUT = {"0": 3, "2": 4}
addresses = st.one_of(
    st.just("all"), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=3).map(tuple), st.just((0, "all"))
)
commands = st.builds(
    Command,
    layer_id=st.sampled_from([*LAYOUT, "nowhere"]),
    seed_id=addresses,
    target=st.sampled_from([State.GERMINATED, *State]),
    version=st.sampled_from([None, None, None, 0, 1, (1, 1), (0, 2, 1)]),
    blueprint=st.sampled_from(["bottleneck_mlp", "bottleneck_mlp", "nonsense", None]),
    settings=st.just({"hidden": 2}),
    strategy=st.sampled_from(["fixed_ramp", "grad_norm_gated"]),
    also=st.dictionaries(st.sampled_from([*LAYOUT]), addresses, max_size=2),
)


def pushed(command: Command, there: dict[str, Place]) -> Command:
    """To a target that the first seed may take: pure chance seldom gets far."""
    layer_id, seed_id = next(iter(command.addresses), ("nowhere", 0))
    if layer_id not in there or not isinstance(seed_id, int) or not seed_id < LAYOUT[layer_id]:
        return command
    return replace(command, target=min(TRANSITIONS[State(int(there[layer_id].state.lifecycle[seed_id]))]), version=None)


@settings(max_examples=150)
@given(st.lists(st.tuples(commands, st.booleans()), max_size=40))
def test_any_stream_of_set_commands_takes_only_listed_transitions(stream):
    """A refused one changes nothing anywhere; an accepted one moves what it names, one version on, and nobody else."""
    there, number = several(), 1
    for command, is_pushed in stream:
        command = pushed(command, there) if is_pushed else command
        before = {name: photograph(place) for name, place in there.items()}
        old = {name: (place.state.lifecycle.tolist(), place.state.version.tolist()) for name, place in there.items()}
        try:
            moved = move(there, command, Birth(number, ramp_steps=2), 0, 0)
        except (TransitionError, ConfigError):
            assert all(unchanged(place, before[name]) for name, place in there.items())
            continue
        number += len(moved) * (command.target is State.GERMINATED)
        named: dict[str, set[int]] = {name: set() for name in there}
        for one in moved:
            seeds = range(LAYOUT[one.layer_id]) if one.seed_id == "all" else [one.seed_id]
            assert named[one.layer_id].isdisjoint(seeds)
            named[one.layer_id].update(seeds)
            assert {old[one.layer_id][0][seed] for seed in seeds} == {one.source}
            assert command.target in TRANSITIONS[one.source]
        assert [(one.layer_id, one.seed_id) for one in moved] == [*command.addresses]
        for name, place in there.items():
            now = zip(place.state.lifecycle.tolist(), place.state.version.tolist(), *old[name], strict=True)
            for seed, (state, version, old_state, old_version) in enumerate(now):
                is_named = seed in named[name]
                assert state == (command.target if is_named else old_state)
                assert version > old_version if is_named else version == old_version
        if command.target in OUTCOMES - {State.FOSSILIZED}:  # what a blend-out would do
            for name, place in there.items():
                falling = {one.lifecycle for one in moved if one.layer_id == name} & {*place.arena.grafts}
                if falling:
                    discard(place, *falling)


# One regroup


class Regroups:
    """Counts how often an arena takes on new groups."""

    def __enter__(self):
        self.count = 0
        self._handle = register_module_module_registration_hook(self._note)
        return self

    def __exit__(self, *error):
        self._handle.remove()

    def _note(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        self.count += isinstance(module, Arena) and name == "groups"


@pytest.mark.parametrize("target", [State.GRAFTING, State.FOSSILIZED], ids=lambda state: state.name)
def test_a_set_is_regrouped_once(target):
    place = lone_place(num_seeds=11)
    promote(place, tuple(range(11)), PATH[PATH.index(target) - 1])
    with Regroups() as together:
        transition(place, Command("fc", tuple(range(11)), target))
    assert together.count == 1


def test_grafts_that_leave_together_are_regrouped_once():
    place = lone_place(num_seeds=11)
    promote(place, tuple(range(11)), State.GRAFTING)
    transition(place, Command("fc", tuple(range(11)), State.CULLED))
    with Regroups() as together:
        discard(place, *place.arena.grafts)
    assert together.count == 1
    assert place.arena.slots.numel() == 0
    with Regroups() as one_by_one:  # negative control: what is counted is there to be counted
        promote(place := lone_place(), (0, 1), State.GRAFTING)
        for number in (1, 2):
            place.arena.remove(number)
    assert one_by_one.count > 2


# What a place of many grafts keeps


def test_grafts_of_several_sizes_are_planted_together_with_the_bytes_they_were_born_with():
    there, alone = lone_place(num_seeds=3), lone_place(num_seeds=3)  # chunks of 3, 4 and 4 channels
    promote(there, (0, 1, 2), State.GRAFTING)
    for number, seed_id in enumerate((0, 1, 2), start=1):
        for target in PATH[:3]:
            transition(alone, Command("fc", seed_id, target, **RECIPE), birth=Birth(number, ramp_steps=4))
    sizes = {graft.num_parameters for graft in there.arena.live}
    assert len(sizes) == 2
    assert torch.equal(there.arena.slots, alone.arena.slots)


def test_the_live_group_of_a_graft_is_where_it_is_computed():
    place = lone_place()
    promote(place, (0, 1, 2, 3), State.GRAFTING)
    for number in place.arena.grafts:
        group, index = place.arena.live_group(number)
        assert group.grafts[index].lifecycle == number
