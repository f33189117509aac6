"""What a graft adds to a training step, as torch counts it, is what is planned for it at most."""

import pytest
import torch
import torch.nn.functional as F

import esper
from esper.blueprints.catalogue import CATALOGUE, COLONIES
from esper.contracts.lifecycle import State
from esper.kasmina.host.anchoring import places
from esper.kasmina.host.wrapping import traced
from esper.runtime.costs.flops import count
from esper.tamiyo.sizing import fitting
from esper.tamiyo.train_flops import STEP_FLOPS
from tests.few import few
from tests.kasmina.growing import grow
from tests.runtime.budgeted import HOSTS

DENSE = {
    "mlp": ("affine", "bottleneck_mlp", "glu", "low_rank", "noop", "norm_affine", "widen"),
    "cnn": ("bottleneck_mlp", "conv_bottleneck", "squeeze_excite", "widen"),
    "gpt": ("glu", "mini_attention", "sliding_conv", "widen"),
}
"""Each blueprint on a host of its own kind, and those that fit anywhere on several."""


def test_every_blueprint_stands_above():
    assert {name for names in DENSE.values() for name in names} == (CATALOGUE | COLONIES).keys() - {
        "depthwise_conv",
        "deepen",
    }
    assert DENSE.keys() == HOSTS.keys()


@pytest.mark.parametrize(
    ("host", "blueprint"),
    few([(host, name) for host, names in DENSE.items() for name in names], ["mlp", ("cnn", "conv_bottleneck")]),
)
def test_a_graft_costs_at_most_six_flops_for_each_of_its_multiply_adds(host, blueprint):
    found = costs(host, blueprint)
    assert found
    for where, (flops, planned) in found.items():
        assert flops <= planned, where


def test_but_torch_counts_the_gradient_of_grouped_convolutions_as_if_they_were_dense():
    """Here to be noticed when it changes."""
    assert any(flops > planned for flops, planned in costs("cnn", "depthwise_conv").values())


def test_and_that_a_fused_attention_forms_its_products_once_more_in_the_backward_pass():
    """So that a copy of a block costs up to seven, and not six, for each of those."""
    [(flops, planned)] = costs("gpt", "deepen").values()
    assert planned < flops <= planned * 7 / 6


def costs(host: str, blueprint: str) -> dict[str, tuple[int, int]]:
    """What a graft adds to a training step, and what is planned for it, at every place that it fits."""
    factory, draw = HOSTS[host]
    torch.manual_seed(0)
    x, found = draw(8), {}

    def step(model: torch.nn.Module) -> int:
        labels = model(x).flatten(0, -2).argmax(-1)
        return count(lambda: F.cross_entropy(model(x).flatten(0, -2), labels).backward())

    for layer_id in [place.layer_id for place in places(esper.wrap(factory(), example=x))]:
        model = esper.wrap(factory(), example=x)
        bare = step(model)
        with traced(model) as trace:
            model(x)
        place = next(one for one in places(model) if one.layer_id == layer_id)
        fit = fitting(blueprint, place.report(), "all")
        if fit is not None:
            grow(place, "all", State.GRAFTING, blueprint=blueprint, alpha=0.5, **fit.settings)
            (graft,) = place.arena.live
            planned = STEP_FLOPS * graft.blueprint.work_of(graft.ports) * trace.rows[layer_id]
            found[layer_id] = step(model) - bare, planned
    return found
