import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.errors import TransitionError
from esper.contracts.lifecycle import LIVE, OUTCOMES, TRAINABLE, TRANSITIONS, State, check_transition, diagram

# The table of SPEC 2, typed off by hand: codes are stored in files and never change.
CODES = {
    "DORMANT": 0,
    "GERMINATED": 1,
    "TRAINING": 2,
    "GRAFTING": 3,
    "STABILIZATION": 4,
    "EVALUATING": 5,
    "FINE_TUNING": 6,
    "FOSSILIZED": 7,
    "CULLED": 8,
    "CANCELLED": 9,
    "ROLLED_BACK": 10,
}
LEAVES_TO = {
    0: {1},
    1: {2, 8, 9, 10},
    2: {3, 8, 9, 10},
    3: {4, 8, 9, 10},
    4: {5, 8, 9, 10},
    5: {6, 8, 9, 10},
    6: {7, 8, 9, 10},
    7: {0},
    8: {0},
    9: {0},
    10: {0},
}
PAIRS = list(itertools.product(State, State))
LISTED = [(source, target) for source, target in PAIRS if target in LEAVES_TO[source]]


def test_codes_never_change():
    assert {state.name: state.value for state in State} == CODES


def test_the_table_is_the_specifications():
    assert {int(source): {int(target) for target in targets} for source, targets in TRANSITIONS.items()} == LEAVES_TO


@pytest.mark.parametrize("source", State, ids=lambda state: state.name)
def test_the_listed_transitions_are_allowed(source):
    for target in LEAVES_TO[source]:
        check_transition("Seed 7 of 'fc'", source, State(target))


@pytest.mark.parametrize("source", State, ids=lambda state: state.name)
def test_any_other_transition_names_the_seed_and_what_is_allowed(source):
    allowed = ", ".join(sorted(State(code).name for code in LEAVES_TO[source]))
    for target in set(State) - LEAVES_TO[source]:
        message = f"Seed 7 of 'fc' cannot go from {source.name} to {target.name}. Allowed from here: {allowed}."
        with pytest.raises(TransitionError, match=f"^{re.escape(message)}$"):
            check_transition("Seed 7 of 'fc'", source, target)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
def test_from_every_state_a_seed_can_come_back_to_dormant(state):
    reached, frontier = {state}, [state]
    while frontier:
        new = TRANSITIONS[frontier.pop()] - reached
        reached |= new
        frontier += new
    assert TRANSITIONS[state]
    assert State.DORMANT in reached


@pytest.mark.parametrize("outcome", sorted(OUTCOMES), ids=lambda state: state.name)
def test_an_outcome_leads_only_back_to_dormant(outcome):
    assert TRANSITIONS[outcome] == {State.DORMANT}


@given(st.lists(st.sampled_from(State), max_size=60))
def test_any_stream_of_requests_takes_only_listed_transitions(stream):
    """A refused request leaves the seed where it is, so no stream can reach a state by an unlisted way."""
    state, taken = State.DORMANT, []
    for target in stream:
        try:
            check_transition("seed", state, target)
        except TransitionError:
            continue
        taken.append((state, target))
        state = target
    assert set(taken) <= set(LISTED)
    births = sum(target is State.GERMINATED for _, target in taken)
    ends = sum(target in OUTCOMES for _, target in taken)
    assert births - ends in (0, 1)  # one lifecycle at a time, each with one outcome


def test_grafts_take_part_in_states_3_to_6_and_move_in_3_and_6():
    assert {3, 4, 5, 6} == LIVE
    assert {3, 6} == TRAINABLE


def test_the_diagram_contains_exactly_the_table():
    arrows = re.findall(r"^    (\w+) --> (\w+)$", diagram(), flags=re.MULTILINE)
    assert sorted(arrows) == sorted((source.name, target.name) for source, target in LISTED)
