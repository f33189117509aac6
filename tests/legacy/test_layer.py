import copy

import pytest
import torch
from torch import nn

from esper.contracts.errors import ConfigError, TransitionError
from esper.legacy.layer import LegacyConfig, LegacyKasminaLayer, host_parameters
from esper.legacy.states import GROWN, TRANSITIONS, LegacyState, check_transition
from tests.legacy.models import RAMP_STEPS, bare, batch, chain, grown, old_layer, train


@pytest.mark.parametrize("target", LegacyState)
@pytest.mark.parametrize("current", LegacyState)
def test_a_seed_goes_where_the_table_says_and_nowhere_else(current, target):
    if target in TRANSITIONS[current]:
        check_transition(current, target)
    else:
        with pytest.raises(TransitionError, match="Allowed from here"):
            check_transition(current, target)


def test_a_dormant_layer_computes_what_its_base_layer_does_to_the_bit():
    assert torch.equal(chain()(batch()), chain(bare)(batch()))


def test_a_seed_lives_from_germination_to_a_fossil_that_moves_no_more():
    model = chain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    layer, before = model[0], model(batch())
    layer.request_germination(0, "bottleneck_mlp")
    assert layer.state is LegacyState.GERMINATING
    assert torch.equal(model(batch()), before)
    layer.begin_grafting(optimizer)
    seen = []
    for _ in range(RAMP_STEPS):
        seen.append((layer.state, layer.alpha))
        train(model, optimizer, 1, layer)
    assert seen == [(LegacyState.GRAFTING, step / RAMP_STEPS) for step in range(RAMP_STEPS)]
    assert (layer.state, layer.alpha) == (LegacyState.FOSSILIZED, 1.0)
    fossil = {name: value.clone() for name, value in layer.graft.items()}
    assert fossil["w2"].any(), "the optimizer has trained it"
    train(model, optimizer, 3, layer)
    assert all(torch.equal(value, fossil[name]) for name, value in layer.graft.items())


@pytest.mark.parametrize("steps", [None, 0, 2])
def test_a_seed_that_is_cancelled_leaves_the_base_layer(steps):
    layer = old_layer(nn.Linear(6, 8))
    if steps is None:
        layer.request_germination(0, "bottleneck_mlp")
    else:
        grown(layer, steps=steps)
    layer.cancel_germination(0)
    assert layer.state is LegacyState.CULLED
    assert torch.equal(layer(batch()), layer.base_layer(batch()))
    with pytest.raises(TransitionError, match="nothing, for good"):
        layer.request_germination(0, "bottleneck_mlp")


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20),
    ],
)
def test_a_graft_learns_at_the_rate_of_a_scheduler_that_was_there_before(make):
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make(optimizer)
    model[0].request_germination(0, "bottleneck_mlp")
    model[0].begin_grafting(optimizer)
    for _ in range(3):
        train(model, optimizer, 1, model[0])
        scheduler.step()
    assert len(optimizer.param_groups) == 1
    assert model[0].graft["w2"].any()


def test_an_optimizer_that_takes_no_parameters_later_is_refused_before_anything_happens():
    model = chain()
    model[0].request_germination(0, "bottleneck_mlp")
    with pytest.raises(ConfigError, match="Adagrad takes no parameters"):
        model[0].begin_grafting(torch.optim.Adagrad(model.parameters()))
    assert model[0].state is LegacyState.GERMINATING


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1, "bottleneck_mlp"), TransitionError, "has one, seed 0"),
        ((0, "bottleneck_mpl"), ConfigError, "Did you mean 'bottleneck_mlp'"),
        ((0, "bottleneck_mlp", "fixed_rump"), ConfigError, "Did you mean 'fixed_ramp'"),
        ((0, "depthwise_conv"), ConfigError, "cannot grow in an old layer"),
        ((0, "placebo"), ConfigError, "does not start as the identity"),
    ],
)
def test_what_cannot_be_grown_is_refused_and_changes_nothing(arguments, error, text):
    layer = old_layer(nn.Linear(6, 8))
    with pytest.raises(error, match=text):
        layer.request_germination(*arguments)
    assert layer.state is LegacyState.DORMANT
    assert not layer.graft


@pytest.mark.parametrize("values", [{"ramp_steps": 0}, {"seed": -1}, {"blueprints": {"low_rank": {"rank": 0}}}])
def test_a_configuration_that_cannot_work_is_refused(values):
    with pytest.raises(ConfigError):
        LegacyConfig(**values)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4))])
def test_a_module_that_does_not_tell_its_widths_is_refused(module):
    with pytest.raises(ConfigError, match="begin and end with one kind"):
        LegacyKasminaLayer(module)


def test_a_graft_beside_what_moves_positions_is_refused_in_plain_words():
    layer = grown(old_layer(nn.Conv2d(3, 4, 3, stride=2)))
    with pytest.raises(ConfigError, match="needs the same positions at both"):
        layer(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("state", LegacyState)
def test_a_state_dict_brings_a_layer_back_and_keeps_parameters_that_fit(state):
    layer, other = chain()[0], chain()[0]
    if state in GROWN:
        layer.request_germination(0, "low_rank")
    if state in (LegacyState.GRAFTING, LegacyState.FOSSILIZED):
        layer = grown(chain()[0], "low_rank", steps=RAMP_STEPS if state is LegacyState.FOSSILIZED else 2)
    if state is LegacyState.CULLED:
        grown(layer, steps=2).cancel_germination(0)
    assert layer.state is state
    other.load_state_dict(layer.state_dict())
    before = [*other.parameters()]
    other.load_state_dict(layer.state_dict())
    assert all(one is two for one, two in zip(before, other.parameters(), strict=True))
    assert torch.equal(other(batch()), layer(batch()))
    assert other.to_dict() == layer.to_dict()
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in layer.parameters()]
    assert torch.equal(copy.deepcopy(layer)(batch()), layer(batch()))


def test_a_run_that_grafts_goes_on_to_the_bit_where_it_was_saved():
    def run(model, optimizer, steps):
        train(model, optimizer, steps, model[0])

    model = chain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model[0].request_germination(0, "bottleneck_mlp")
    model[0].begin_grafting(optimizer)
    run(model, optimizer, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, 4)

    other = chain()
    other.load_state_dict(saved[0])
    resumed = torch.optim.AdamW(host_parameters(other), lr=1e-2)
    other[0].begin_grafting(resumed)
    resumed.load_state_dict(saved[1])
    run(other, resumed, 4)
    assert all(torch.equal(one, two) for one, two in zip(other.parameters(), model.parameters(), strict=True))


def test_stats_and_health_tell_what_the_seed_is():
    layer = grown(old_layer(nn.Linear(6, 8)), steps=2)
    stats = layer.get_layer_stats()
    assert (stats["states"], stats["parameters"]) == ({"GRAFTING": 1}, 56)
    assert stats["grown_parameters"] == sum(value.numel() for value in layer.graft.values())
    wanted = {"state": "GRAFTING", "alpha": 0.5, "blueprint": "bottleneck_mlp", "is_finite": True}
    assert layer.get_health_report() == {0: wanted}
    with torch.no_grad():
        layer.graft["w1"][0, 0] = torch.nan
    assert not layer.get_health_report()[0]["is_finite"]


def test_a_convolution_grows_in_the_strides_of_its_output():
    layer = grown(old_layer(nn.Conv2d(3, 4, 3, padding=1)), "conv_bottleneck")
    x = torch.randn(2, 3, 5, 5)
    assert layer(x).stride() == layer.base_layer(x).stride()
    assert not torch.equal(layer(x), layer.base_layer(x))
