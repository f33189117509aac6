"""How alpha moves: up from 0 to 1 while a graft is blended in, down to 0 while it is blended out."""

from collections.abc import Callable

import torch
from torch import Tensor

from esper.contracts.lifecycle import State
from esper.kasmina.seed_state import SeedState


def fixed_ramp(steps: Tensor, ramp_steps: Tensor) -> Tensor:
    """Alpha rises linearly from 0 to 1 over ``ramp_steps`` optimizer steps.

    Args:
        steps: int32 ``[seeds]``, steps in GRAFTING so far.
        ramp_steps: int32 ``[seeds]``, length of the ramp.

    Returns:
        float32 ``[seeds]`` in [0, 1], rising with ``steps``.
    """
    return (steps / ramp_steps.clamp(min=1)).clamp(max=1.0)


STRATEGIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"fixed_ramp": fixed_ramp}


@torch.no_grad()
def advance(state: SeedState) -> None:
    """One training step of all seeds of a place: clocks, and the alphas of seeds that are blended in or out.

    In a blend-out alpha falls along the reversed ramp and never rises.
    """
    state.steps_in_state += 1
    rising = state.lifecycle == State.GRAFTING
    falling = (state.lifecycle == State.CULLED) | (state.lifecycle == State.CANCELLED)
    ramp = fixed_ramp(state.steps_in_state, state.ramp_steps)
    state.alpha.copy_(
        torch.where(rising, ramp, torch.where(falling, torch.minimum(state.alpha, 1 - ramp), state.alpha))
    )
