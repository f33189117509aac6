"""What may happen to a seed: the eleven states and the one table of transitions between them.

Codes are stored in checkpoints and logs and never change. Whether a listed transition *should* happen is decided in
``kasmina.gates``; making it so, in ``kasmina.lifecycle``.
"""

from enum import IntEnum

from esper.contracts.errors import TransitionError


class State(IntEnum):
    """Lifecycle state of a seed."""

    DORMANT = 0
    GERMINATED = 1
    TRAINING = 2
    GRAFTING = 3
    STABILIZATION = 4
    EVALUATING = 5
    FINE_TUNING = 6
    FOSSILIZED = 7
    CULLED = 8
    CANCELLED = 9
    ROLLED_BACK = 10


OUTCOMES = frozenset({State.FOSSILIZED, State.CULLED, State.CANCELLED, State.ROLLED_BACK})
"""States that end a lifecycle. Each leads only back to DORMANT."""

LIVE = frozenset({State.GRAFTING, State.STABILIZATION, State.EVALUATING, State.FINE_TUNING})
"""States in which a graft takes part in the forward pass."""

TRAINABLE = frozenset({State.GRAFTING, State.FINE_TUNING})
"""Live states in which the graft's own parameters move."""

_FAILURES = frozenset({State.CULLED, State.CANCELLED, State.ROLLED_BACK})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.DORMANT: frozenset({State.GERMINATED}),
    State.GERMINATED: _FAILURES | {State.TRAINING},
    State.TRAINING: _FAILURES | {State.GRAFTING},
    State.GRAFTING: _FAILURES | {State.STABILIZATION},
    State.STABILIZATION: _FAILURES | {State.EVALUATING},
    State.EVALUATING: _FAILURES | {State.FINE_TUNING},
    State.FINE_TUNING: _FAILURES | {State.FOSSILIZED},
    State.FOSSILIZED: frozenset({State.DORMANT}),
    State.CULLED: frozenset({State.DORMANT}),
    State.CANCELLED: frozenset({State.DORMANT}),
    State.ROLLED_BACK: frozenset({State.DORMANT}),
}
"""What may follow what. The only place that knows."""


def check_transition(seed: str, current: State, target: State) -> None:
    """Refuse a transition that the table does not list.

    Args:
        seed: how to name the seed in the message.
        current: the state the seed is in.
        target: the state it was asked to enter.

    Raises:
        TransitionError: naming what is allowed from ``current``.
    """
    if target in TRANSITIONS[current]:
        return
    allowed = ", ".join(sorted(state.name for state in TRANSITIONS[current]))
    raise TransitionError(f"{seed} cannot go from {current.name} to {target.name}. Allowed from here: {allowed}.")


def diagram() -> str:
    """The table as a Mermaid state diagram (``docs/lifecycle.md`` holds its output)."""
    arrows = [f"    {source.name} --> {target.name}" for source in State for target in sorted(TRANSITIONS[source])]
    return "\n".join(["stateDiagram-v2", "    [*] --> DORMANT", *arrows])
