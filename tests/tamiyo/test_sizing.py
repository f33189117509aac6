from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprints.blueprint import Ports
from esper.blueprints.bottleneck_mlp import BottleneckMLP
from esper.blueprints.catalogue import make_blueprint
from esper.blueprints.widen import Widen
from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Piece
from esper.tamiyo.sizing import budget_per_row, fitting, options, parameter_room, ports_at
from tests.tamiyo.seen import NOW, PLACES, Pooled, place

DENSE = GrowthConfig(blueprints=("bottleneck_mlp",))


def test_a_graft_connects_the_place_or_its_chunk():
    one = place("0", outputs=10, num_seeds=4, inputs=64, layout="tokens", chunk_layout="features")
    whole, chunk = BottleneckMLP(), BottleneckMLP(reads="chunk")
    assert ports_at(one, "all", whole) == Ports(64, 10, "tokens")
    assert ports_at(one, "all", chunk) == Ports(10, 10, "features")
    assert ports_at(one, 1, whole) == Ports(64, 3, "tokens")
    assert ports_at(one, 2, chunk) == Ports(2, 2, "features")


def test_a_graft_of_a_colony_connects_the_pieces_that_its_blueprint_can():
    beside, wider = Piece("0", "beside", 4, 6), Piece("0.up", "linear", 4, 8, writes=8, target=0)
    one = place("*", kind="colony", inputs=4, outputs=14, pieces=(beside, wider))
    assert ports_at(one, "all", BottleneckMLP()).pieces == (beside,)
    assert ports_at(one, "all", Widen()).pieces == (wider,)


@pytest.mark.parametrize("capacity", [0.5, 1.0])
@pytest.mark.parametrize("one", PLACES, ids=lambda one: one.layer_id or "model")
def test_a_graft_is_as_large_as_capacity_per_round_allows(one, capacity):
    """Of a dense graft multiply-adds are weights: inputs, bias and outputs of a hidden unit, and output biases."""
    [option] = options(one, "all", NOW, replace(DENSE, capacity_per_round=capacity))
    budget = int(capacity * NOW.host_parameters)
    assert option.blueprint.hidden == (budget - one.outputs) // (one.inputs + one.outputs + 1)


def test_capacity_is_in_multiply_adds_once_a_step_was_traced():
    """A place that writes 4 rows where the host takes 1,000 multiply-adds may take 250 for each."""
    seen = replace(NOW, host_multiply_adds=1000)
    assert budget_per_row(place("0", rows=4), seen, DENSE) == 250
    assert budget_per_row(place("0", rows=0), seen, DENSE) == NOW.host_parameters
    assert budget_per_row(place("0", rows=4), NOW, DENSE) == NOW.host_parameters


def test_latency_bounds_the_size():
    seen = replace(NOW, host_multiply_adds=1000, grown_multiply_adds=100)
    assert budget_per_row(place("0", rows=4), seen, replace(DENSE, max_latency=0.3)) == 50
    assert budget_per_row(place("0", rows=4), seen, replace(DENSE, max_latency=3.0)) == 250
    assert budget_per_row(place("0", rows=0), seen, replace(DENSE, max_latency=0.3)) < 0


def test_memory_bounds_the_size():
    seen = replace(NOW, grown_parameters=100)
    assert parameter_room(seen, DENSE) == 1023 - 100
    assert parameter_room(seen, replace(DENSE, max_memory=0.5)) == 341 - 100
    assert parameter_room(seen, replace(DENSE, max_memory=5.0)) == 1023 - 100


@given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from(["bottleneck_mlp", "placebo"]))
def test_what_is_fitted_is_the_largest_within_both_bounds(budget, room, name):
    ports, blueprint = Ports(9, 7), make_blueprint(name, {})
    best = blueprint.sized(ports, budget, room)

    def is_within(hidden: int) -> bool:
        one = replace(blueprint, hidden=hidden)
        return one.multiply_adds(ports) <= budget and one.num_parameters(ports) <= room

    if best is None:
        assert not is_within(1)
    else:
        assert is_within(best.hidden)
        assert not is_within(best.hidden + 1)


def test_parameters_bound_what_costs_little():
    best = Pooled().sized(Ports(8, 8), 10_000, 500)
    assert best == Pooled(hidden=(500 - 8) // 17)


def test_where_the_input_cannot_be_read_only_the_chunk_is():
    blind = place("0", inputs=0)
    [option] = options(blind, "all", NOW, DENSE)
    assert option.blueprint.reads == "chunk"
    assert option.ports.inputs == blind.outputs
    assert fitting("bottleneck_mlp", place("0"), "all").reads == "input"


def test_blueprints_that_do_not_fit_are_no_options():
    config = GrowthConfig(blueprints=("conv_bottleneck", "bottleneck_mlp"))
    assert [one.blueprint.id for one in options(place("0"), "all", NOW, config)] == ["bottleneck_mlp"]
    both = options(place("0", layout="image"), "all", NOW, config)
    assert [one.blueprint.id for one in both] == ["conv_bottleneck", "bottleneck_mlp"]
    assert options(place("0"), "all", NOW, replace(config, min_confidence=3))
    assert options(place("0"), "all", NOW, replace(config, blueprints=("placebo",), min_confidence=1)) == []


def test_where_nothing_is_small_enough_there_are_none():
    assert options(place("0"), "all", replace(NOW, grown_parameters=1023), DENSE) == []
    assert options(place("0"), "all", NOW, replace(DENSE, capacity_per_round=0.1)) == []
