"""How alpha moves: up from 0 to 1 while a graft is blended in, down to 0 while it is blended out.

Legend: S seeds of the place, G grafts that one strategy blends in, M what it remembers of each.
"""

import torch

from esper.contracts.lifecycle import State
from esper.kasmina.grafts.strategies import MAX_SPEED, GraftSignals
from esper.kasmina.places.place import Place


def needs_signals(place: Place) -> bool:
    """Whether a graft is being blended in at the place by a strategy that looks at signals."""
    return bool(place.arena.ramps)


@torch.no_grad()
def advance(place: Place, signals: GraftSignals | None = None) -> None:
    """One training step of all seeds of a place: clocks, and the alphas of seeds that are blended in or out.

    Alpha rises as the clock of its ramp runs, at the speed that the graft's strategy gives. In a blend-out it falls
    along the reversed ramp, in as many steps, and never rises.

    Args:
        place: the place.
        signals: of this step, where :func:`needs_signals`.
    """
    state, memory = place.state, place.arena.memory
    speed_S = torch.ones_like(state.progress)
    for strategy, slots, seeds, owners in place.arena.ramps:  # one for each strategy
        assert signals is not None, f"{strategy.id} looks at signals, and advance was given none"
        memory_GM = memory[slots, : strategy.memory]
        speed_G, new_GM = strategy.speed(memory_GM, signals)
        speed_G = torch.nan_to_num(speed_G, nan=0.0, posinf=0.0, neginf=0.0).clamp(0.0, MAX_SPEED)
        speed_S[seeds] = speed_G[owners]
        memory[slots, : strategy.memory] = torch.where(torch.isfinite(new_GM), new_GM, memory_GM)

    state.steps_in_state += 1
    rising = state.lifecycle == State.GRAFTING
    falling = (state.lifecycle == State.CULLED) | (state.lifecycle == State.CANCELLED)
    ramp_steps = state.ramp_steps.clamp(min=1)
    state.progress += torch.where(rising, speed_S, 0.0)
    rise = (state.progress / ramp_steps).clamp(max=1.0)
    fall = 1 - (state.steps_in_state / ramp_steps).clamp(max=1.0)
    state.alpha.copy_(torch.where(rising, rise, torch.where(falling, torch.minimum(state.alpha, fall), state.alpha)))
