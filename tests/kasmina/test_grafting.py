"""How alpha moves, and what each strategy makes of the signals that it is built for."""

from itertools import pairwise

import pytest
import torch

from esper.contracts.commands import Command
from esper.contracts.lifecycle import LIVE, State
from esper.kasmina.grafts.strategies import (
    DriftControlled,
    GradNormGated,
    GraftSignals,
    GraftStrategy,
    PerformanceLinked,
)
from esper.kasmina.places.grafting import advance, needs_signals
from esper.kasmina.places.lifecycle import transition
from esper.kasmina.places.place import Place
from tests.kasmina.lone import blend_in, lone_place, signals
from tests.kasmina.oracle import advanced_by_loop


def seeds(state: State, alpha: float = 0.0, ramp_steps: int = 10) -> Place:
    place = lone_place(num_seeds=1)
    place.state.lifecycle[0], place.state.alpha[0], place.state.ramp_steps[0] = int(state), alpha, ramp_steps
    return place


def alphas(place: Place, steps: int) -> list[float]:
    seen = [float(place.state.alpha[0])]
    for _ in range(steps):
        advance(place)
        seen.append(float(place.state.alpha[0]))
    return seen


def speeds(strategy: GraftStrategy, stream: list[GraftSignals]) -> list[float]:
    memory, seen = torch.zeros(1, strategy.memory), []
    for one in stream:
        speed, memory = strategy.speed(memory, one)
        seen.append(float(speed.clamp(0, 2)))
    return seen


def ramp(strategy: str, stream: list[GraftSignals]) -> list[float]:
    place = lone_place()
    blend_in(place, 0, 1, strategy)
    seen = []
    for one in stream:
        advance(place, one)
        seen.append(float(place.state.alpha[0]))
    return seen


# The clock


def test_a_graft_is_blended_in_over_its_ramp():
    assert alphas(seeds(State.GRAFTING, ramp_steps=4), 6) == [0, 0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("ramp_steps", [1, 3, 7, 49, 4999])
def test_a_fixed_ramp_is_exactly_the_share_of_its_steps_that_is_done(ramp_steps):
    place = seeds(State.GRAFTING, ramp_steps=ramp_steps)
    steps = min(ramp_steps + 2, 60)
    expected = (torch.arange(steps + 1, dtype=torch.int32) / torch.tensor(ramp_steps)).clamp(max=1.0)
    assert alphas(place, steps) == expected.tolist()


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
    place = seeds(state, alpha)
    assert set(alphas(place, 5)) == {alpha}
    assert place.state.steps_in_state.tolist() == [5]


def test_a_blend_out_needs_no_signals():
    place = lone_place()
    blend_in(place, 0, 1, "drift_controlled")
    place.state.lifecycle[0], place.state.alpha[0] = int(State.CULLED), 0.5
    place.arena.settle(1)
    assert alphas(place, 10)[-1] == 0.0


def test_a_strategy_that_needs_signals_is_not_run_without():
    place = lone_place()
    blend_in(place, 0, 1, "drift_controlled")
    with pytest.raises(AssertionError, match="drift_controlled looks at signals"):
        advance(place)


def mixed_ramps() -> Place:
    """Eleven seeds: two grafts of each strategy, one that has settled, one that falls, one that sleeps."""
    place = lone_place(num_seeds=11)
    names = ["fixed_ramp", "performance_linked", "drift_controlled", "grad_norm_gated"]
    for seed, name in enumerate([*names, *names, "drift_controlled", "grad_norm_gated"]):
        blend_in(place, seed, seed + 1, name, ramp_steps=7 + seed)
    transition(place, Command("fc", 8, State.STABILIZATION))
    place.state.alpha[9] = 0.8
    transition(place, Command("fc", 9, State.CULLED))
    return place


def test_all_seeds_at_once_advance_as_the_loop_over_seeds_would_let_them():
    """To the bit, memories too, over 40 steps of signals that pause some and hurry others; one is not finite."""
    place, other = mixed_ramps(), mixed_ramps()
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        draw = torch.randn(5, generator=generator).tolist()
        loss = float("nan") if step == 11 else 2 + draw[0]
        seen = signals(loss=loss, gradient_norm=10.0 ** draw[1], weights=(1 + draw[2], -1.0 + 0.1 * draw[3], draw[4]))
        advance(place, seen)
        advanced_by_loop(other, seen)
        assert torch.equal(place.arena.memory, other.arena.memory)
        for name, column in place.state.named_buffers():
            assert torch.equal(column, getattr(other.state, name)), name
    assert 0 < float(place.state.alpha[6]) < 1
    assert place.arena.memory.any(dim=1).tolist() == [False, *[True] * 3] * 2 + [False] * 2


def test_a_group_rises_as_one():
    place, alone = lone_place(), lone_place(num_seeds=1)
    for one in (place, alone):
        blend_in(one, "all", 1, "performance_linked")
    for step in range(6):
        for one in (place, alone):
            advance(one, signals(loss=9.0 - step))
    assert place.state.alpha.tolist() == alone.state.alpha.tolist() * 4
    assert float(alone.state.alpha) > 0.6


def test_signals_are_needed_while_a_graft_rises_by_them():
    place = lone_place()
    blend_in(place, 0, 1, "fixed_ramp")
    assert not needs_signals(place)
    blend_in(place, 1, 2, "grad_norm_gated")
    assert needs_signals(place)
    transition(place, Command("fc", 1, State.STABILIZATION))
    assert not needs_signals(place)


# Each strategy under the signals that it is built for

FALLING = [signals(loss=40.0 - 0.1 * step) for step in range(300)]
RISING = [signals(loss=1.0 + 0.1 * step) for step in range(300)]
LEVEL = [signals()] * 80


def test_performance_linked_is_fast_while_the_loss_falls_and_slow_while_it_rises():
    falling, rising, level = (speeds(PerformanceLinked(), stream) for stream in (FALLING, RISING, LEVEL))
    assert set(level) == {1.0}
    assert falling[-1] == pytest.approx(1.75, abs=0.01)
    assert rising[-1] == pytest.approx(0.25, abs=0.01)
    assert all(speed >= 1 for speed in falling)
    assert all(0 <= speed <= 1 for speed in rising)


def test_performance_linked_does_not_depend_on_the_scale_of_the_loss():
    small, large = ([signals(loss=float(one.loss) * scale) for one in FALLING] for scale in (2.0**-10, 2.0**10))
    torch.testing.assert_close(speeds(PerformanceLinked(), small), speeds(PerformanceLinked(), large))


def test_performance_linked_is_nominal_on_average_under_noise_alone():
    generator = torch.Generator().manual_seed(0)
    noise = (2 + torch.randn(2000, generator=generator)).tolist()
    seen = torch.tensor(speeds(PerformanceLinked(), [signals(loss=loss) for loss in noise]))
    assert float(seen.mean()) == pytest.approx(1, abs=0.05)
    assert float(seen.std()) < 0.5


def host_at(position: float) -> GraftSignals:
    return signals(weights=(1.0 + position, -1.0, 0.5))


def test_drift_controlled_pauses_while_the_host_moves_and_goes_on_when_it_has_come_to_rest():
    moving = [host_at(0.1 * step) for step in range(20)]
    seen = speeds(DriftControlled(), [host_at(0.0)] * 5 + moving + [host_at(1.9)] * 60)
    assert seen[:5] == [1.0] * 5
    assert seen[15:25] == [0.0] * 10
    assert seen[-1] == 1.0
    assert set(seen) == {0.0, 1.0}


def test_drift_controlled_ends_a_pause_where_the_host_is_because_the_average_moves_meanwhile():
    """Were the average to wait, the host would have to come back to it."""
    strategy, here = DriftControlled(), host_at(3.0)
    memory = strategy.speed(torch.zeros(1, strategy.memory), host_at(0.0))[1]
    gaps = []
    for _ in range(10):
        speed, memory = strategy.speed(memory, here)
        assert float(speed) == 0.0
        gaps.append(float((here.weights - memory[0, 1:4]).norm()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.6 * gaps[0]
    standing = memory.clone()
    assert [float(strategy.speed(standing, here)[0]) for _ in range(200)] == [0.0] * 200  # negative control
    assert speeds(strategy, [host_at(0.0)] + [here] * 200)[-1] == 1.0


def test_drift_controlled_takes_its_threshold_at_its_word():
    """The weights (1, 0) move to (1 + d, 0): relative to the average, by d."""
    for distance, speed in ((0.119, 1.0), (0.121, 0.0)):
        stream = [signals(weights=(1.0, 0.0)), signals(weights=(1.0 + distance, 0.0))]
        assert speeds(DriftControlled(0.12), stream)[-1] == speed


@pytest.mark.parametrize(("norm", "speed"), [(0.09, 0.0), (0.11, 1.0), (1.0, 1.0), (9.9, 1.0), (10.1, 0.0)])
def test_grad_norm_gated_pauses_outside_a_tenth_to_ten_times_the_median(norm, speed):
    assert speeds(GradNormGated(), [*LEVEL[:20], signals(gradient_norm=norm)])[-1] == speed


def test_grad_norm_gated_takes_a_new_level_for_ordinary_after_half_its_ring():
    seen = speeds(GradNormGated(), [*LEVEL[:40], *[signals(gradient_norm=100.0)] * 40])
    assert seen[40:56] == [0.0] * 16
    assert seen[57:] == [1.0] * 23


def test_grad_norm_gated_compares_with_the_median_of_the_last_32():
    norms = torch.rand(100, generator=torch.Generator().manual_seed(0)).mul(4).exp().tolist()
    seen = speeds(GradNormGated(), [signals(gradient_norm=norm) for norm in norms])
    for step in range(1, 100):
        median = float(torch.tensor(norms[max(0, step - 32) : step]).median())
        assert seen[step] == (0.1 * median <= norms[step] <= 10 * median)
    assert 0 < sum(seen) < 100


@pytest.mark.parametrize("before", [1.0, 100.0])
def test_grad_norm_gated_goes_on_as_before_where_the_optimizer_rested(before):
    stream = [*LEVEL[:20], signals(gradient_norm=before), *[signals(gradient_norm=-1.0)] * 3]
    seen = speeds(GradNormGated(), stream)
    assert seen[-4:] == [seen[20]] * 4
    resumed = speeds(GradNormGated(), [*stream, signals(gradient_norm=9.0)])
    assert resumed[-1] == 1.0  # rests are no norms: the median is 1 still


@pytest.mark.parametrize(
    ("strategy", "stream"),
    [
        ("performance_linked", FALLING),
        ("performance_linked", RISING),
        ("drift_controlled", [host_at(0.2 * step) for step in range(80)]),
        ("grad_norm_gated", [*LEVEL[:3], *[signals(gradient_norm=50.0)] * 3, *LEVEL]),
    ],
)
def test_each_strategy_changes_the_curve(strategy, stream):
    assert ramp(strategy, stream) != ramp("fixed_ramp", stream)
    assert ramp(strategy, LEVEL) == ramp("fixed_ramp", LEVEL)


def test_a_paused_ramp_resumes_where_it_stopped():
    seen = ramp("grad_norm_gated", [*LEVEL[:4], *[signals(gradient_norm=50.0)] * 3, *LEVEL[:7]])
    torch.testing.assert_close(seen, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
