"""One suite that every grafting strategy passes, those of the catalogue and what users register."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.kasmina.grafts.graft import Graft
from esper.kasmina.grafts.strategies import (
    MAX_SPEED,
    STRATEGIES,
    FixedRamp,
    GraftStrategy,
    register_strategy,
    strategy_kind,
)
from esper.kasmina.places import grafting
from esper.kasmina.places.grafting import advance, needs_signals
from tests.kasmina.lone import blend_in, lone_place, signals


@dataclass(frozen=True)
class EveryOther(GraftStrategy):
    """What a user may register: runs at a speed of its own, every other step."""

    id: ClassVar[str] = "every_other"
    memory: ClassVar[int] = 1

    pace: float = 1.5

    def speed(self, memory_GM, signals):
        return memory_GM[:, 0] * self.pace, 1 - memory_GM


@dataclass(frozen=True)
class Reckless(GraftStrategy):
    """What a user should not register: speeds and memory are whatever the loss is."""

    id: ClassVar[str] = "reckless"
    memory: ClassVar[int] = 2

    def speed(self, memory_GM, signals):
        return signals.loss.expand(len(memory_GM)), memory_GM + signals.loss


USERS = (EveryOther, Reckless)
ALL = [*STRATEGIES, *(kind.id for kind in USERS)]
every = pytest.mark.parametrize("name", ALL)


@pytest.fixture(autouse=True, scope="module")
def _users_strategies():
    for kind in USERS:
        register_strategy(kind)
    yield
    for kind in USERS:
        del STRATEGIES[kind.id]


wild = st.one_of(st.floats(width=32), st.floats(-10, 10, width=32), st.just(-1.0))
tame = st.floats(-100, 100, width=32)


def streams(values, **sizes):
    return st.lists(st.builds(signals, values, values, st.tuples(values, values, values)), **sizes)


def curve(place, stream, seed: int = 1) -> list[float]:
    seen = [float(place.state.alpha[seed])]
    for one in stream:
        advance(place, one)
        seen.append(float(place.state.alpha[seed]))
    return seen


def rising_place(name: str, ramp_steps: int = 10):
    place = lone_place()
    blend_in(place, 1, 1, name, ramp_steps)
    return place


@every
@settings(max_examples=60)
@given(streams(wild, max_size=40), st.integers(1, 30))
def test_whatever_it_sees_alpha_rises_by_bounded_steps_within_0_and_1(name, stream, ramp_steps):
    """Also where signals are not finite, and where the strategy is reckless."""
    seen = curve(rising_place(name, ramp_steps), stream)
    assert seen[0] == 0.0
    assert all(0 <= before <= after <= 1 for before, after in pairwise(seen))
    assert all(after - before <= MAX_SPEED / ramp_steps + 1e-6 for before, after in pairwise(seen))


def test_without_the_bound_a_reckless_strategy_would_jump(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(grafting, "MAX_SPEED", 1e9)
    assert curve(rising_place("reckless"), [signals(5.0)]) == [0.0, 0.5]


@every
@settings(max_examples=60)
@given(streams(wild, max_size=20))
def test_what_it_remembers_stays_finite(name, stream):
    place = rising_place(name)
    curve(place, stream)
    assert torch.isfinite(place.arena.memory).all()


@every
@settings(max_examples=30)
@given(streams(tame, max_size=20), streams(tame, max_size=20))
def test_saved_in_the_middle_of_a_ramp_it_goes_on_bit_for_bit(name, before, after):
    place = rising_place(name)
    curve(place, before)
    again = lone_place()
    again.load_state_dict(place.state_dict())
    assert curve(again, after) == curve(place, after)
    assert torch.equal(again.arena.memory, place.arena.memory)
    assert again.arena.topology() == place.arena.topology()


@pytest.mark.parametrize("name", [name for name in ALL if name != "reckless"])
@settings(max_examples=12)
@given(streams(tame, max_size=20), tame, st.floats(0, 100, width=32), st.tuples(tame, tame, tame))
def test_under_steady_signals_nobody_stays_paused_for_ever(name, before, loss, norm, weights):
    place = rising_place(name)
    curve(place, before)
    assert curve(place, [signals(loss, norm, weights)] * 500)[-1] == 1.0


@every
def test_grafts_of_one_strategy_have_each_a_ramp_of_their_own(name):
    """Seeds that begin at different times, together at one place and each alone."""
    generator = torch.Generator().manual_seed(0)
    stream = [
        signals(*(torch.randn(2, generator=generator).abs() * 3).tolist(), torch.randn(3, generator=generator).tolist())
        for _ in range(30)
    ]
    together, alone = lone_place(), [lone_place() for _ in range(3)]
    for step, one in enumerate(stream):
        if step in (0, 4, 9):
            for place in (together, alone[(0, 4, 9).index(step)]):
                blend_in(place, (0, 4, 9).index(step), 1 + step, name, ramp_steps=20)
        for place in (together, *alone):
            advance(place, one)
        assert together.state.alpha[:3].tolist() == [float(place.state.alpha[seed]) for seed, place in enumerate(alone)]


@every
def test_all_seeds_of_a_group_rise_together(name):
    place = lone_place()
    blend_in(place, "all", 1, name)
    curve(place, [signals()] * 5)
    assert len(set(place.state.alpha.tolist())) == 1


@every
def test_it_starts_afresh_in_a_slot_that_another_graft_has_left(name):
    first, other = lone_place(), rising_place(name)
    stream = [signals(loss, norm, (loss, norm, 1.0)) for loss, norm in ((1, 5), (8, 300), (2, 1), (9, 2), (1, 1))]
    blend_in(first, 0, 8, name)
    blend_in(first, 2, 9, "fixed_ramp")
    curve(first, stream[::-1])
    first.arena.remove(8)
    blend_in(first, 1, 1, name)
    assert first.arena.grafts[1].slot == 0
    assert curve(first, stream) == curve(other, stream)


@every
def test_it_is_rebuilt_from_what_a_checkpoint_says(name):
    graft = rising_place(name).arena.grafts[1]
    assert Graft.from_dict(graft.to_dict()) == graft
    assert graft.strategy == strategy_kind(name)(**graft.strategy.settings)
    assert hash(graft.strategy) == hash(strategy_kind(name)(**graft.strategy.settings))


@every
def test_signals_are_asked_for_only_while_it_blends_in(name):
    place = rising_place(name)
    assert needs_signals(place) == STRATEGIES[name].needs_signals
    place.arena.settle(1)
    assert not needs_signals(place)
    advance(place, None)


# The registry


def test_there_are_the_four_of_the_specification():
    assert list(STRATEGIES)[:4] == ["fixed_ramp", "performance_linked", "drift_controlled", "grad_norm_gated"]


def test_codes_follow_the_order_of_registration():
    place = lone_place()
    for seed, name in enumerate(ALL[:4]):
        blend_in(place, seed, seed + 1, name)
    assert place.state.strategy.tolist() == [0, 1, 2, 3]
    assert rising_place("every_other").state.strategy.tolist() == [0, 4, 0, 0]


def test_the_drift_threshold_is_the_configurations():
    place = lone_place(drift_threshold=0.5)
    blend_in(place, 1, 1, "drift_controlled")
    assert place.arena.grafts[1].strategy == strategy_kind("drift_controlled")(0.5)
    assert strategy_kind("drift_controlled").configured(GrowthConfig()) == strategy_kind("drift_controlled")(0.12)


def test_registered_twice_it_is_the_same():
    assert register_strategy(EveryOther) is EveryOther


@dataclass(frozen=True)
class Usurper(FixedRamp):
    id: ClassVar[str] = "drift_controlled"


@dataclass(frozen=True)
class Nameless(GraftStrategy):
    def speed(self, memory_GM, signals):
        return memory_GM[:, 0], memory_GM


@dataclass(frozen=True)
class Forgetful(FixedRamp):
    id: ClassVar[str] = "forgetful"
    memory: ClassVar[int] = -1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Usurper, "'drift_controlled' is taken by the strategy DriftControlled"),
        (Nameless, "Nameless needs an id"),
        (Forgetful, "Forgetful: memory must be a whole number of floats of at least 0, not -1"),
        (int, "int is no grafting strategy"),
        (FixedRamp(), "no grafting strategy"),
    ],
    ids=str,
)
def test_what_cannot_be_registered_is_refused_and_changes_nothing(kind, message):
    before = dict(STRATEGIES)
    with pytest.raises(ConfigError, match=message):
        register_strategy(kind)
    assert before == STRATEGIES


def test_an_unknown_strategy_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ConfigError, match=r"no grafting strategy 'fixed'\. Did you mean 'fixed_ramp'\? Valid: drift_"):
        strategy_kind("fixed")
