"""Transitions are made all or nothing, whatever the stream of commands."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprints.blueprint import Ports
from esper.contracts.commands import Command
from esper.contracts.errors import ConfigError, TransitionError
from esper.contracts.lifecycle import LIVE, OUTCOMES, TRANSITIONS, State
from esper.kasmina.places import lifecycle
from esper.kasmina.places.grafting import advance
from esper.kasmina.places.lifecycle import Birth, discard, is_finite, transition
from esper.kasmina.places.place import Place
from tests.kasmina.growing import PATH, grow, place_of, release, remove, wrapped
from tests.kasmina.growing import mlp as make_mlp
from tests.kasmina.lone import blend_in, lone_place


def photograph(place: Place) -> tuple:
    """Everything a refused command must leave alone."""
    tensors = {name: tensor.clone() for name, tensor in place.state_dict().items()}
    return tensors, place.arena.topology(), list(place.arena.grafts), len(place.arena.groups)


def unchanged(place: Place, before: tuple) -> bool:
    after = photograph(place)
    return after[1:] == before[1:] and all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())


commands = st.builds(
    Command,
    layer_id=st.just("fc"),
    seed_id=st.sampled_from([0, 1, 3, "all", 4, -1, None]),
    target=st.sampled_from(State),
    version=st.sampled_from([None, None, None, 0, 1, 5]),
    blueprint=st.sampled_from(["bottleneck_mlp", "bottleneck_mlp", "bottleneck_mlp", "none_such", None]),
    settings=st.sampled_from([{"hidden": 2}, {"hidden": 3, "reads": "chunk"}, {"hidden": 0}, {"hiden": 2}]),
    strategy=st.sampled_from(["fixed_ramp", "fixed_ramp", "drift_controlled", "none_such"]),
)


@settings(max_examples=150)
@given(st.lists(st.tuples(commands, st.booleans()), max_size=40))
def test_any_stream_of_commands_takes_only_listed_transitions(stream):
    """A refused command changes nothing; an accepted one moves its seeds, one version on, and nobody else."""
    place = lone_place()
    for birth, (command, is_push) in enumerate(stream, start=1):
        if is_push and command.seed_id in (0, 1, 3):  # pure chance seldom gets far
            command = replace(command, target=min(TRANSITIONS[State(int(place.state.lifecycle[command.seed_id]))]))
        before, states = photograph(place), place.state.lifecycle.clone()
        try:
            (told,) = transition(place, command, birth=Birth(birth, ramp_steps=2))
        except (TransitionError, ConfigError):
            assert unchanged(place, before)
            continue
        seeds = slice(0, 4) if command.seed_id == "all" else slice(command.seed_id, command.seed_id + 1)
        moved = torch.zeros(4, dtype=torch.bool)
        moved[seeds] = True
        sources = {State(int(code)) for code in states[moved]}
        assert len(sources) == 1
        assert command.target in TRANSITIONS[sources.pop()]
        assert (place.state.lifecycle[moved] == command.target).all()
        assert torch.equal(place.state.lifecycle[~moved], states[~moved])
        assert int(place.state.version[seeds].max()) == told.version
        assert torch.equal(place.state.version[~moved], before[0]["state.version"][~moved])
        if command.target in {State.CULLED, State.CANCELLED, State.ROLLED_BACK}:  # what a blend-out would do
            for number in [graft.lifecycle for graft in place.arena.live if graft.seeds[0] == seeds.start]:
                discard(place, number)
    _check_books(place)


def _check_books(place: Place) -> None:
    """Grafts exist exactly where a lifecycle is under way, slots exactly where one is live."""
    for graft in place.arena.grafts.values():
        states = {State(int(code)) for code in place.state.lifecycle[slice(*graft.seeds)]}
        assert len(states) == 1
        assert (graft.slot is not None) == (states.pop() in LIVE)
    under_way = [code for code in place.state.lifecycle.tolist() if code and State(code) not in OUTCOMES]
    assert sum(end - first for first, end in (graft.seeds for graft in place.arena.grafts.values())) == len(under_way)


def test_each_promotion_moves_what_belongs_to_it():
    place = lone_place()
    seen = {}
    for target in PATH:
        place.state.steps_in_state.fill_(3)
        place.state.epochs_in_state.fill_(3)
        transition(place, Command("fc", 1, target, blueprint="bottleneck_mlp"), birth=Birth(7, ramp_steps=4))
        assert place.state.steps_in_state.tolist() == place.state.epochs_in_state.tolist() == [3, 0, 3, 3]
        if target in LIVE:
            place.state.alpha[1] = 1.0
        seen[target] = (7 in place.arena.grafts, len(place.arena.live), len(place.arena.fossils))
    assert seen[State.GERMINATED] == seen[State.TRAINING] == (True, 0, 0)
    assert {seen[state] for state in LIVE} == {(True, 1, 0)}
    assert seen[State.FOSSILIZED] == (False, 0, 1)
    assert place.state.alpha.tolist() == [0, 0, 0, 0]  # a fossil needs none
    assert place.state.lifecycle_id.tolist() == [0, 7, 0, 0]
    assert place.state.version.tolist() == [0, 7, 0, 0]
    release(place, 1)
    assert place.state.lifecycle_id.tolist() == [0, 0, 0, 0]
    assert place.state.version.tolist() == [0, 8, 0, 0]


@pytest.mark.parametrize("state", [State.GERMINATED, State.TRAINING])
@pytest.mark.parametrize("outcome", [State.CULLED, State.CANCELLED, State.ROLLED_BACK])
def test_before_grafting_a_lifecycle_ends_at_once(state, outcome):
    place = lone_place()
    grow(place, 1, state)
    transition(place, Command("fc", 1, outcome))
    assert not place.arena.grafts


@pytest.mark.parametrize("outcome", [State.CULLED, State.CANCELLED])
def test_a_blended_in_graft_stays_until_it_is_blended_out(outcome):
    place = lone_place()
    number = grow(place, 1, State.FINE_TUNING)
    transition(place, Command("fc", 1, outcome))
    assert place.state.alpha.tolist() == [0, 1, 0, 0]
    before = photograph(place)
    with pytest.raises(TransitionError, match="still blends out"):
        release(place, 1)
    assert unchanged(place, before)
    discard(place, number)
    assert place.state.alpha.tolist() == [0, 0, 0, 0]
    release(place, 1)


def test_an_embargo_is_noted_and_lifted_with_the_outcome():
    place = lone_place()
    grow(place, 2, State.TRAINING)
    transition(place, Command("fc", 2, State.CULLED), embargo_epochs=5, quarantine_epochs=9)
    assert place.state.embargo_epochs.tolist() == [0, 0, 5, 0]
    release(place, 2)
    assert place.state.embargo_epochs.tolist() == [0, 0, 0, 0]


def test_who_was_rolled_back_is_in_quarantine_and_who_cancelled_is_free():
    place = lone_place()
    grow(place, 2, State.TRAINING)
    transition(place, Command("fc", 2, State.ROLLED_BACK), embargo_epochs=5, quarantine_epochs=9)
    grow(place, 1, State.TRAINING, lifecycle=2)
    transition(place, Command("fc", 1, State.CANCELLED), embargo_epochs=5, quarantine_epochs=9)
    assert place.state.embargo_epochs.tolist() == [0, 0, 9, 0]


REFUSED = {
    "unlisted": (Command("fc", 1, State.GRAFTING), TransitionError, "from GERMINATED to GRAFTING. Allowed from here:"),
    "stale": (Command("fc", 1, State.TRAINING, version=0), TransitionError, "version 1; the command was for version 0"),
    "from the future": (Command("fc", 1, State.TRAINING, version=9), TransitionError, "for version 9"),
    "no such seed": (Command("fc", 4, State.GERMINATED), TransitionError, "has no seed 4. It has seeds 0 to 3"),
    "negative seed": (Command("fc", -1, State.GERMINATED), TransitionError, "has no seed -1"),
    "mixed group": (Command("fc", "all", State.GERMINATED), TransitionError, "do not share one state"),
    "no blueprint": (Command("fc", 0, State.GERMINATED), ConfigError, "must name a blueprint"),
    "unknown blueprint": (Command("fc", 0, State.GERMINATED, blueprint="bottleneck"), ConfigError, "Did you mean"),
    "unknown setting": (
        Command("fc", 0, State.GERMINATED, blueprint="bottleneck_mlp", settings={"hiden": 3}),
        ConfigError,
        "no setting 'hiden'. Did you mean 'hidden'",
    ),
    "unknown strategy": (
        Command("fc", 0, State.GERMINATED, blueprint="bottleneck_mlp", strategy="ramp"),
        ConfigError,
        "no grafting strategy 'ramp'. .*Valid: .*fixed_ramp",
    ),
}


MISFITS = {
    "reads its input, which is none": (
        Ports(0, 11),
        {"blueprint": "bottleneck_mlp"},
        "'bottleneck_mlp' cannot grow at Seed 1 of 'fc': it reads the place's input, which is nothing",
    ),
    "another layout": (
        Ports(6, 11),
        {"blueprint": "conv_bottleneck"},
        "'conv_bottleneck' cannot grow at Seed 1 of 'fc': it grows on image or signal, and the place has features",
    ),
    "another width": (
        Ports(6, 11),
        {"blueprint": "affine", "settings": {"reads": "input"}},
        "'affine' cannot grow at Seed 1 of 'fc': it keeps the width, and 6 inputs are not 3 outputs",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_blueprint_that_does_not_fit_is_refused_with_place_and_reason(name):
    ports, what, message = MISFITS[name]
    place = lone_place(ports)
    before = photograph(place)
    with pytest.raises(ConfigError, match=message):
        transition(place, Command("fc", 1, State.GERMINATED, **what), birth=Birth(2, ramp_steps=4))
    assert unchanged(place, before)


def test_a_seed_that_reads_its_chunk_fits_where_there_is_no_input():
    place = lone_place(Ports(0, 11, "tokens", 5))
    grow(place, 1, State.TRAINING, reads="chunk")
    assert place.arena.grafts[1].ports == Ports(3, 3, "tokens", 5)


def test_a_seed_germinates_alone_while_others_of_its_place_live():
    place = lone_place()
    grow(place, 0, State.FINE_TUNING)
    grow(place, 1, State.GRAFTING, alpha=0.5)
    bytes_before = {n: place.arena.params_of(graft).detach().clone() for n, graft in place.arena.grafts.items()}
    grow(place, 3, State.TRAINING)
    assert place.state.lifecycle.tolist() == [State.FINE_TUNING, State.GRAFTING, State.DORMANT, State.TRAINING]
    assert place.state.lifecycle_id.tolist() == [1, 2, 0, 3]
    transition(place, Command("fc", 3, State.GRAFTING))
    assert place.state.alpha.tolist() == [1.0, 0.5, 0.0, 0.0]
    for number, before in bytes_before.items():
        assert torch.equal(place.arena.params_of(place.arena.grafts[number]), before)


def test_a_second_ramp_of_a_seed_begins_at_its_beginning():
    place = lone_place()
    blend_in(place, 1, 1, "fixed_ramp", ramp_steps=4)
    for _ in range(3):
        advance(place)
    assert place.state.progress.tolist() == [0, 3, 0, 0]
    transition(place, Command("fc", 1, State.CANCELLED))
    discard(place, 1)
    release(place, 1)
    assert place.state.progress.tolist() == [0, 0, 0, 0]
    blend_in(place, 1, 2, "fixed_ramp", ramp_steps=4)
    advance(place)
    assert place.state.alpha.tolist() == [0, 0.25, 0, 0]


@pytest.mark.parametrize("target", [State.STABILIZATION, State.CULLED, State.CANCELLED, State.ROLLED_BACK])
def test_a_graft_rises_only_while_it_is_blended_in(target):
    place = lone_place()
    blend_in(place, 1, 1, "fixed_ramp")
    assert place.arena.grafts[1].is_rising
    transition(place, Command("fc", 1, target))
    assert not place.arena.grafts[1].is_rising


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_why_and_changes_nothing(name):
    command, error, message = REFUSED[name]
    place = lone_place()
    grow(place, 1, State.GERMINATED)
    before = photograph(place)
    with pytest.raises(error, match=message):
        transition(place, command, birth=Birth(2, ramp_steps=4))
    assert unchanged(place, before)


def test_without_the_table_a_seed_could_skip_its_trial(monkeypatch):
    """Negative control: the table alone stands between TRAINING and FINE_TUNING."""
    place = lone_place()
    grow(place, 1, State.TRAINING)
    with pytest.raises(TransitionError):
        transition(place, Command("fc", 1, State.FINE_TUNING))
    monkeypatch.setattr(lifecycle, "check_transition", lambda *_: None)
    transition(place, Command("fc", 1, State.FINE_TUNING))
    assert place.state.lifecycle[1] == State.FINE_TUNING


def test_one_seed_of_a_group_cannot_be_moved_alone():
    place = lone_place()
    grow(place, "all", State.FINE_TUNING)
    before = photograph(place)
    with pytest.raises(TransitionError, match=r"part of a group\. Address the group"):
        transition(place, Command("fc", 2, State.CULLED))
    assert unchanged(place, before)


def test_a_group_is_one_graft_over_all_channels():
    place = lone_place()
    number = grow(place, "all")
    assert [graft.lifecycle for graft in place.arena.live] == [number]
    assert place.arena.grafts[number].channels == (0, 11)
    assert place.state.lifecycle_id.tolist() == [number] * 4


def test_births_depend_on_the_lifecycle_alone_and_leave_the_global_stream():
    """Bytes are equal in every arm, and no dropout mask of the host moves."""
    one, other = lone_place(), lone_place()
    grow(other, 3, scale=None, lifecycle=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for place in (one, other):
        grow(place, 1, scale=None, lifecycle=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*(place.arena.params_of(place.arena.grafts[9]) for place in (one, other)))
    graft = one.arena.grafts[9]
    assert not torch.equal(graft.birth(seed=0), graft.birth(seed=1))


def test_finiteness_is_measured_on_the_grafts_own_parameters():
    place = lone_place()
    first, second = grow(place, 1), grow(place, 2)
    with torch.no_grad():
        place.arena.params_of(place.arena.grafts[first])[0] = torch.nan
    assert not is_finite(place, first)
    assert is_finite(place, second)


def test_removing_a_graft_leaves_no_trace_in_the_model():
    model = wrapped(make_mlp(6, 8, 4), {"0": 4})
    x = torch.randn(5, 6)
    before = model(x)
    grow(place_of(model, "0"), 1)
    assert not torch.equal(model(x), before)
    remove(place_of(model, "0"), 1)
    assert torch.equal(model(x), before)
