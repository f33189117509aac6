from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.grafting import STRATEGIES, advance
from esper.kasmina.seed_state import SeedState


def seeds(state: State, alpha: float = 0.0, ramp_steps: int = 10) -> SeedState:
    one = SeedState(1)
    one.lifecycle[0], one.alpha[0], one.ramp_steps[0] = int(state), alpha, ramp_steps
    return one


def alphas(one: SeedState, steps: int) -> list[float]:
    seen = [float(one.alpha[0])]
    for _ in range(steps):
        advance(one)
        seen.append(float(one.alpha[0]))
    return seen


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(st.integers(1, 5000))
def test_alpha_rises_from_0_to_1_by_bounded_steps(strategy, ramp_steps):
    alpha = STRATEGIES[strategy](torch.arange(ramp_steps + 3), torch.tensor(ramp_steps))
    assert float(alpha[0]) == 0.0
    assert alpha[ramp_steps:].tolist() == [1.0, 1.0, 1.0]
    assert (alpha.diff() >= 0).all()
    assert float(alpha.diff().max()) <= 1 / ramp_steps + 1e-6


def test_a_graft_is_blended_in_over_its_ramp():
    assert alphas(seeds(State.GRAFTING, ramp_steps=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("state", [State.CULLED, State.CANCELLED])
@pytest.mark.parametrize("start", [1.0, 0.3])
def test_a_blend_out_never_rises_and_ends_at_zero_after_as_many_steps(state, start):
    seen = alphas(seeds(state, alpha=start, ramp_steps=10), 12)
    assert seen == sorted(seen, reverse=True)
    assert max(before - after for before, after in pairwise(seen)) <= 0.1 + 1e-6
    assert seen[10:] == [0.0, 0.0, 0.0]
    assert seen[9] > 0


@pytest.mark.parametrize("state", sorted(set(State) - {State.GRAFTING, State.CULLED, State.CANCELLED}))
def test_no_other_state_moves_alpha(state):
    alpha = 1.0 if state in LIVE else 0.0
    one = seeds(state, alpha)
    assert set(alphas(one, 5)) == {alpha}
    assert one.steps_in_state.tolist() == [5]
