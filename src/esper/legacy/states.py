"""The five states of the old layer, and the one table of transitions between them."""

from enum import Enum

from esper.contracts.errors import TransitionError


class LegacyState(Enum):
    """State of the one seed of an old layer. The names stand in files and never change."""

    DORMANT = "DORMANT"
    GERMINATING = "GERMINATING"
    GRAFTING = "GRAFTING"
    FOSSILIZED = "FOSSILIZED"
    CULLED = "CULLED"


TRANSITIONS: dict[LegacyState, frozenset[LegacyState]] = {
    LegacyState.DORMANT: frozenset({LegacyState.GERMINATING}),
    LegacyState.GERMINATING: frozenset({LegacyState.GRAFTING, LegacyState.CULLED}),
    LegacyState.GRAFTING: frozenset({LegacyState.FOSSILIZED, LegacyState.CULLED}),
    LegacyState.FOSSILIZED: frozenset(),
    LegacyState.CULLED: frozenset(),
}
"""What may follow what. An old seed lives once."""

GROWN = frozenset({LegacyState.GERMINATING, LegacyState.GRAFTING, LegacyState.FOSSILIZED})
"""States in which there is a graft."""


def check_transition(current: LegacyState, target: LegacyState) -> None:
    """Refuse a transition that the table does not list.

    Raises:
        TransitionError: naming what is allowed from ``current``.
    """
    if target not in TRANSITIONS[current]:
        allowed = ", ".join(sorted(state.name for state in TRANSITIONS[current])) or "nothing, for good"
        raise TransitionError(f"The seed cannot go from {current.name} to {target.name}. Allowed from here: {allowed}.")
