"""One suite that every policy passes, whatever it sees."""

import copy
import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprints.blueprint import LAYOUTS
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.commands import Command
from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.contracts.reports import Observation, PlaceReport, SeedReport
from esper.tamiyo.policies import POLICIES, make_policy, register_policy
from esper.tamiyo.shield import veto
from esper.tamiyo.sizing import fitting, ports_at
from tests.tamiyo.seen import NOW, bounds_of, place, report, sensed

every = pytest.mark.parametrize("name", sorted(POLICIES))

COUNTS = st.integers(0, 5000)
ONE_IN_10 = st.integers(0, 9).map(lambda value: value == 9)


def columns(num_seeds: int):
    """Of floats of any kind, or none at all."""
    return st.none() | st.lists(st.floats(), min_size=num_seeds, max_size=num_seeds)


@st.composite
def places(draw, name: str) -> PlaceReport:
    num_seeds = draw(st.integers(1, 5))
    outputs = draw(st.integers(num_seeds, 40))
    column = columns(num_seeds)
    codes = st.sampled_from([int(state) for state in State])
    return PlaceReport(
        layer_id=name,
        kind=draw(st.sampled_from(["layer", "layer", "block", "span", "model"])),
        states=draw(st.tuples(*[codes] * num_seeds)) if draw(ONE_IN_10) else (0,) * num_seeds,
        is_under_embargo=draw(ONE_IN_10) and draw(ONE_IN_10),
        inputs=draw(st.integers(0, 40)),
        outputs=outputs,
        bounds=bounds_of(outputs, num_seeds),
        layout=draw(st.sampled_from(sorted(LAYOUTS))),
        host_parameters=draw(COUNTS),
        rows=draw(st.integers(0, 64)),
        seeds=draw(st.none() | st.builds(SeedReport, column, column, column, column)),
        gradient_noise=draw(st.none() | st.floats()),
        drift=draw(st.none() | st.floats()),
    )


REPORTS = st.builds(
    lambda blueprint, outcome, layer_id, twin: report(blueprint, outcome, layer_id, **twin),
    st.sampled_from(["bottleneck_mlp", "glu", "gone"]),
    st.sampled_from(["CULLED", "FOSSILIZED", "CANCELLED", "ROLLED_BACK"]),
    st.sampled_from(["0", "1"]),
    st.dictionaries(st.sampled_from(["gate_loss", "twin_gate_loss", "metric_gain"]), st.none() | st.floats()),
)

OBSERVATIONS = st.builds(
    Observation,
    step=st.integers(50, 400) | st.integers(50, 400) | st.integers(0, 1000),
    planned_steps=st.just(1000),
    epoch=st.integers(0, 60),
    train_losses=st.lists(st.floats(), max_size=6),
    select_losses=st.just((1.0,) * 5) | st.just((1.0,) * 5) | st.lists(st.floats(), max_size=6),
    places=st.integers(1, 5).flatmap(lambda count: st.tuples(*[places(str(index)) for index in range(count)])),
    rounds_done=st.sampled_from([0, 0, 1, 1, 2]),
    host_parameters=st.sampled_from([5000, 2000, 300, 0]),
    grown_parameters=st.sampled_from([0, 0, 100, 2000]),
    select_metrics=st.lists(st.floats(), max_size=2),
    active=st.sampled_from([0, 0, 0, 3, 7, 8]),
    host_multiply_adds=st.sampled_from([0, 9_999, 500_000]),
    grown_multiply_adds=COUNTS,
    reports=st.lists(REPORTS, max_size=6),
)

CONFIGS = st.builds(
    GrowthConfig,
    blueprints=st.lists(
        st.sampled_from(["bottleneck_mlp", "glu", "conv_bottleneck", "affine", "noop"]), min_size=1, max_size=3
    ),
    selection=st.sampled_from(["performance", "stability", "accuracy", "risk", "novelty", "size", "cost"]),
    trial=st.sampled_from(["round", "live"]),
    max_candidates=st.integers(1, 5),
    max_memory=st.sampled_from([None, None, 0.3, 2.0]),
    max_latency=st.sampled_from([None, None, 0.3, 2.0]),
    min_confidence=st.sampled_from([0, 0, 2, 3]),
    target_metric=st.none() | st.floats(0.0, 1.0),
    capacity_per_round=st.sampled_from([1.0, 0.1, 3.0]),
    max_growth=st.sampled_from([1.5, 0.1, 3.0]),
    min_targets=ONE_IN_10.map(lambda is_rare: None if is_rare else 0),
    seed=st.integers(0, 9),
)


def asked_by_all(seen, config) -> list[Command]:
    """What all policies ask for, each for itself: to draw what is seen takes longer than to decide."""
    return [command for name in sorted(POLICIES) for command in make_policy(name, config).decide(seen)]


def test_what_is_drawn_asks_for_growth_often_enough():
    """The properties below would hold of a policy that never grows."""
    asked = []

    @settings(max_examples=500)
    @given(OBSERVATIONS, CONFIGS)
    def draw(seen, config):
        asked.append(bool(make_policy("heuristic", config).decide(seen)))

    draw()
    assert sum(asked) > 0.15 * len(asked)


@given(OBSERVATIONS, CONFIGS)
def test_they_germinate_dormant_seeds_with_blueprints_that_fit(seen, config):
    for command in asked_by_all(seen, config):
        [one] = [one for one in seen.places if one.layer_id == command.layer_id]
        seeds = one.states if command.seed_id == "all" else [one.states[command.seed_id]]
        assert command.target is State.GERMINATED
        assert set(seeds) == {State.DORMANT}
        assert fitting(command.blueprint, one, command.seed_id) is not None
        assert command.trial == config.trial


def vetoes(commands, seen, config) -> list[str]:
    """Of commands to germinate, each looked at while those before it wait for the round."""
    reasons = []
    for command in commands:
        reasons.append(veto(command, seen, config))
        blueprint = make_blueprint(command.blueprint, command.settings)
        (where,) = (one for one in seen.places if one.layer_id == command.layer_id)
        size = blueprint.multiply_adds(ports_at(where, command.seed_id, blueprint)) * where.rows
        waiting = (*seen.waiting_multiply_adds, size)
        seen = replace(seen, active=seen.active + 1, waiting_multiply_adds=waiting)
    assert len(commands) <= 1 or {command.trial for command in commands} == {"round"}  # live ones would add up
    return [reason for reason in reasons if reason is not None]


@given(OBSERVATIONS, CONFIGS)
def test_they_ask_for_nothing_that_the_shield_would_veto(seen, config):
    for name in POLICIES:
        commands = make_policy(name, config).decide(seen)
        assert vetoes(commands, seen, config) == [], name
        assert len(commands) <= config.max_candidates, name
        assert len({command.layer_id for command in commands}) == len(commands), name


@given(OBSERVATIONS, CONFIGS)
def test_they_keep_to_window_rounds_and_target(seen, config):
    commands = asked_by_all(seen, config)
    metrics, target = seen.select_metrics, config.target_metric
    if not config.grow_after <= seen.step / seen.planned_steps <= config.grow_until:
        assert commands == []
    if seen.rounds_done >= config.max_rounds or any(one.is_under_embargo for one in seen.places):
        assert commands == []
    if target is not None and metrics and metrics[-1] >= target:
        assert commands == []


@given(OBSERVATIONS, CONFIGS)
def test_deciding_changes_nothing_that_is_seen(seen, config):
    before = repr(copy.deepcopy(seen))
    asked_by_all(seen, config)
    assert repr(seen) == before


# A run


def a_run(seed: int) -> list[Observation]:
    """Boundaries of a run with some telemetry, one round after the other."""
    draw = random.Random(seed)
    layers = tuple(
        place(str(index), "layer", 100 * index + 50, seeds=sensed(4, gradient=draw.random())) for index in range(4)
    )
    spans = tuple(place(f"{index}:{index + 1}", "span", 700, num_seeds=1) for index in range(6))
    return [replace(NOW, step=step, places=(*layers, *spans), rounds_done=step // 250) for step in range(0, 1000, 25)]


BUSY = GrowthConfig(max_rounds=4, blueprints=("bottleneck_mlp", "glu"), max_candidates=2)


def decisions(policy, seen):
    return [policy.decide(one) for one in seen]


@every
def test_equal_policies_decide_alike(name):
    assert decisions(make_policy(name, BUSY), a_run(0)) == decisions(make_policy(name, BUSY), a_run(0))


@every
@pytest.mark.parametrize("stop", [0, 5, 11])
def test_one_that_goes_on_from_its_state_decides_as_if_never_stopped(name, stop):
    """The state is plain values; a policy that remembers nothing has none."""
    run, whole = a_run(0), make_policy(name, BUSY)
    first, rest = decisions(whole, run[:stop]), None
    state = json.loads(json.dumps(whole.state_dict())) if hasattr(whole, "state_dict") else None
    rest = decisions(whole, run[stop:])
    resumed = make_policy(name, BUSY)
    if state is not None:
        decisions(resumed, run[::-1])  # has been elsewhere
        resumed.load_state_dict(state)
    assert decisions(resumed, run[stop:]) == rest
    assert any(first + rest) is (name != "never")


def test_a_random_policy_that_lost_its_state_would_be_seen():
    """Negative control."""
    run, whole, stateless = a_run(0), make_policy("random", BUSY), make_policy("random", BUSY)
    decisions(whole, run[:11])
    assert decisions(whole, run[11:]) != decisions(stateless, run[11:])


# The control policies


def test_never_never_grows():
    assert not any(decisions(make_policy("never", BUSY), a_run(0)))


def test_random_depends_on_the_seed_alone():
    runs = [decisions(make_policy("random", replace(BUSY, seed=seed)), a_run(0)) for seed in range(10)]
    assert len({repr(run) for run in runs}) == 10
    times = {next(index for index, commands in enumerate(run) if commands) for run in runs}
    asked = [command for run in runs for commands in run for command in commands]
    assert len(times) > 3
    assert {command.layer_id for command in asked} == {one.layer_id for one in a_run(0)[0].places}
    assert {command.blueprint for command in asked} == {"bottleneck_mlp", "glu"}
    assert {len(commands) for run in runs for commands in run} == {0, 2}


def test_random_ignores_what_was_sensed():
    assert decisions(make_policy("random", BUSY), a_run(0)) == decisions(make_policy("random", BUSY), a_run(1))


# The list


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"no policy 'heuristik'\. Did you mean 'heuristic'\? Valid: heu"):
        make_policy("heuristik", BUSY)


def test_users_register_their_own(monkeypatch):
    monkeypatch.setattr("esper.tamiyo.policies.POLICIES", dict(POLICIES))
    register_policy("mine", POLICIES["never"])
    assert make_policy("mine", BUSY).decide(NOW) == []
    with pytest.raises(ConfigError, match="a policy 'mine' already"):
        register_policy("mine", POLICIES["never"])
