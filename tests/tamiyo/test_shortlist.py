import itertools
import random
from dataclasses import replace

import pytest

from esper.contracts.reports import PlaceReport, SeedReport
from esper.tamiyo.health import Vitals
from esper.tamiyo.shortlist import needs, shortlist
from tests.tamiyo.seen import PLACES, busy, place, sensed


def names(places, length=4, **among):
    return [one.place.layer_id for one in shortlist(places, length, **among)]


# Without telemetry


def test_it_has_paths_by_size_and_one_layer():
    assert names(PLACES, 4) == ["", "0:2", "2:4", "0"]
    assert names(PLACES, 3) == ["", "0:2", "0"]
    assert names(PLACES, 2) == ["", "0"]
    assert names(PLACES, 1) == [""]
    assert {one.seed_id for one in shortlist(PLACES, 4)} == {"all"}


def test_places_under_way_are_not_on_it():
    assert "" not in names([busy(one) if one.layer_id == "" else one for one in PLACES])
    assert names([busy(one) for one in PLACES]) == []


def test_a_host_without_paths_offers_layers():
    assert names([one for one in PLACES if one.kind == "layer"]) == ["0", "2"]


def test_without_layers_it_is_paths_alone():
    assert names([one for one in PLACES if one.kind != "layer"], 2) == ["", "0:2"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::50])
def test_without_telemetry_size_alone_decides(order):
    """In the order in which places come where they are of equal size."""
    sizes = (100, 300, 290, 100, 4000, 17)
    layers = [place(str(index), "layer", sizes[index]) for index in order]
    assert names(layers, 6) == [one.layer_id for one in sorted(layers, key=lambda one: -one.host_parameters)]


# With telemetry


def chain(*widths: int, seeds: int = 4, rows: int = 32) -> list[PlaceReport]:
    """Places of an MLP in which every channel carries its share: demand per channel falls with the width."""
    layers = [
        place(
            str(index),
            "layer",
            (inputs + 1) * outputs,
            states=(0,) * min(seeds, outputs),
            inputs=inputs,
            outputs=outputs,
            rows=rows,
            seeds=sensed(min(seeds, outputs), gradient=outputs**-0.5),
        )
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths))
    ]
    size = sum(one.host_parameters for one in layers)
    whole = place("", "model", size, num_seeds=1, inputs=widths[0], outputs=widths[-1], seeds=sensed(1))
    return [*layers, whole]


def with_seeds(places, layer_id, **changes):
    return [replace(one, seeds=sensed(one.num_seeds, **changes)) if one.layer_id == layer_id else one for one in places]


def test_paths_keep_their_order_whatever_was_sensed():
    loud = [replace(one, seeds=sensed(one.num_seeds, gradient=10.0**index)) for index, one in enumerate(PLACES)]
    assert names(loud)[:3] == ["", "0:2", "2:4"]


def test_need_breaks_ties_of_paths():
    spans = [place(name, "span", 500, num_seeds=1, seeds=sensed(1, gradient=g)) for name, g in (("a", 1.0), ("b", 1.2))]
    assert names(spans) == ["b", "a"]


def test_a_narrow_layer_goes_before_larger_ones():
    assert names(chain(64, 64, 64, 2, 64, 64, 10))[-1] == "2"


def test_the_layer_that_writes_the_output_is_no_bottleneck():
    """It is as narrow as the task asks."""
    places = chain(64, 64, 64, 64, 2)
    assert names(places)[-1] == "0"
    assert names([replace(one, outputs=3) if one.kind == "model" else one for one in places])[-1] == "3"


def test_it_is_not_one_either_while_the_whole_model_grows():
    places = chain(64, 64, 64, 64, 2)
    assert names([one for one in places if one.kind == "layer"], among=places)[0] == "0"


def test_need_orders_layers_of_comparable_size():
    louder = with_seeds(chain(64, 64, 60, 64, 10), "1", gradient=0.2)
    assert names(louder)[-1] == "1"
    assert names(with_seeds(chain(64, 64, 20, 64, 10), "1", gradient=0.2))[-1] == "0"  # a third of the size


def test_ill_health_orders_layers_of_equal_demand():
    places = chain(64, 64, 64, 64, 10)
    assert names(with_seeds(places, "1", gradient=0.125, inactive=0.9))[-1] == "1"
    assert names(with_seeds(places, "1", gradient=0.125, inactive=0.1))[-1] == "0"


def test_a_silent_chunk_goes_before_any_demand():
    places = with_seeds(chain(64, 64, 64, 64, 10), "1", gradient=0.125, variance=[1.0, 0.0, 1.0, 1.0])
    assert names(with_seeds(places, "2", gradient=1e6, inactive=0.9))[-1] == "1"


def test_the_chunk_that_is_silent_grows_alone():
    places = with_seeds(
        chain(64, 64, 64, 64, 10), "1", gradient=0.125, variance=[1.0, 1.0, 0.0, 1.0], inactive=[0.5, 0.5, 1.0, 0.5]
    )
    last = shortlist(places, 4)[-1]
    assert (last.place.layer_id, last.seed_id) == ("1", 2)


def test_where_several_chunks_are_silent_the_layer_grows_as_one():
    places = with_seeds(chain(64, 64, 64, 64, 10), "1", gradient=0.125, variance=[1.0, 0.0, 0.0, 1.0])
    last = shortlist(places, 4)[-1]
    assert (last.place.layer_id, last.seed_id) == ("1", "all")


@pytest.mark.parametrize(("loudest", "seed_id"), [(0.6, 3), (0.4, "all")])
def test_one_chunk_with_a_clearly_larger_demand_grows_alone(loudest, seed_id):
    places = with_seeds(chain(64, 64, 64, 64, 10), "1", gradient=[0.125, 0.12, 0.11, loudest])
    assert [one.seed_id for one in shortlist(places, 4) if one.place.layer_id == "1"] == [seed_id]


def test_of_two_chunks_none_stands_out():
    places = with_seeds(chain(64, 64, 64, 64, 10, seeds=2), "1", gradient=[0.1, 0.9])
    assert [one.seed_id for one in shortlist(places, 4) if one.place.layer_id == "1"] == ["all"]


def test_a_closed_layer_goes_first():
    """It passes no gradient back, so that neither it nor what is above it shows any demand."""
    places = with_seeds(chain(64, 64, 64, 2, 64, 10), "2", inactive=1.0, gradient=0.0)
    for above in ("0", "1"):
        places = with_seeds(places, above, gradient=0.0)
    assert names(places)[-1] == "2"


def test_places_that_were_not_sensed_have_the_usual_need():
    nothing = Vitals(None, None, (), False)
    assert needs({"a": nothing, "b": Vitals(3.0, 0.5, (), False), "c": Vitals(1.0, 0.5, (), False)}) == {
        "a": 1.0,
        "b": pytest.approx(3.0),
        "c": pytest.approx(1 / 3),
    }


# Planted bottlenecks


def noisy_chain(draw: random.Random, widths, seeds: int) -> list[PlaceReport]:
    """What training nets show, roughly: demand that scatters by a factor of 1.5, and every column by seed."""

    def around(value: float, spread: float) -> float:
        return value * draw.lognormvariate(0, spread)

    places = []
    for one in chain(*widths, seeds=seeds):
        of_place = around(one.outputs**-0.5, 0.2)
        columns = (
            [around(1.0, 0.5) for _ in one.states],
            [draw.uniform(0.2, 0.8) for _ in one.states],
            [draw.uniform(0.0, 0.4) for _ in one.states],
            [around(of_place, 0.3) for _ in one.states],
        )
        places.append(replace(one, seeds=SeedReport(*columns)))
    return places


def shuffled(draw: random.Random, places: list[PlaceReport]) -> list[PlaceReport]:
    """Gradient norms dealt to other layers."""
    layers = [one for one in places if one.kind == "layer"]
    norms = [one.seeds.gradient_norm[0] for one in layers]
    draw.shuffle(norms)
    dealt = [
        replace(one, seeds=replace(one.seeds, gradient_norm=[norm] * one.num_seeds))
        for one, norm in zip(layers, norms, strict=True)
    ]
    return [*dealt, *(one for one in places if one.kind != "layer")]


def test_a_planted_bottleneck_is_named_in_95_of_100_trials():
    found = found_in_shuffled = 0
    for trial in range(100):
        draw = random.Random(trial)
        widths, where = [64, 64, 64, 64, 64, 10], draw.randrange(4)
        widths[1 + where] = 2
        places = noisy_chain(draw, widths, seeds=8)
        found += names(places)[-1] == str(where)
        found_in_shuffled += names(shuffled(draw, places))[-1] == str(where)
    assert found >= 95
    assert found_in_shuffled < 50


def test_planted_dead_channels_are_named_in_95_of_100_trials():
    found = 0
    for trial in range(100):
        draw = random.Random(trial)
        where, seed = draw.randrange(4), draw.randrange(8)
        places = noisy_chain(draw, [64, 64, 64, 64, 64, 10], seeds=8)
        columns = {}
        for name, value in (("chunk_variance", 0.0), ("inactive_ratio", 1.0)):
            column = list(getattr(places[where].seeds, name))
            column[seed] = value
            columns[name] = column
        places[where] = replace(places[where], seeds=replace(places[where].seeds, **columns))
        last = shortlist(places, 4)[-1]
        found += (last.place.layer_id, last.seed_id) == (str(where), seed)
    assert found >= 95


# Blocks in a row


def block(layer_id: str, host_parameters: int, **changes) -> PlaceReport:
    return place(layer_id, "block", host_parameters, num_seeds=1, is_step=True, **changes)


AROUND = [place("", "model", 1000, num_seeds=1), place("0:1", "span", 700, num_seeds=1)]


def test_one_path_around_many_goes_before_single_blocks_of_a_row():
    row = [block("0", 300), block("1", 350), block("2", 200), block("3", 100)]
    assert names([*AROUND, *row]) == ["", "1", "0", "2"]
    assert names([*AROUND, *row], 2) == ["", "1"]
    assert names([*AROUND, *row], 1) == [""]
    assert names(row) == ["1", "0", "2", "3"]


def test_two_blocks_are_filled_up_with_paths_and_one_alone_is_no_row():
    layer = place("0.linear", "layer", 250)
    assert names([*AROUND, block("0", 300), block("1", 350), layer]) == ["", "1", "0", "0:1"]
    assert names([*AROUND, block("0", 300), layer]) == ["", "0:1", "0", "0.linear"]


def test_need_breaks_ties_of_blocks():
    row = [block(str(one), 300, seeds=sensed(1, gradient=gradient)) for one, gradient in enumerate((1.0, 3.0, 1.0))]
    assert names(row, 1) == ["1"]
