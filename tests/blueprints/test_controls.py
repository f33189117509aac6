"""What only the controls do: they must not be worth keeping."""

import pytest
import torch

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.errors import ConfigError
from esper.contracts.reports import Piece

PORTS = Ports(5, 3)


def params_of(blueprint) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in blueprint.shapes(PORTS).items()}


def test_a_placebo_cannot_see_its_own_sample():
    blueprint = make_blueprint("placebo", {"hidden": 4})
    params, x = params_of(blueprint), torch.randn(6, 5)
    before = blueprint.delta(params, x)
    x[2] += 1.0
    changed = (blueprint.delta(params, x) != before).any(dim=1)
    assert changed.tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("positions", [(), (3,), (2, 3)], ids=["features", "tokens or signal", "image"])
def test_a_placebo_computes_what_the_bottleneck_does_on_another_sample(positions):
    settings = {"hidden": 4}
    placebo, bottleneck = make_blueprint("placebo", settings), make_blueprint("bottleneck_mlp", settings)
    params, x = params_of(placebo), torch.randn(6, *positions, 5)
    assert torch.equal(placebo.delta(params, x), bottleneck.delta(params, x.roll(1, 0)))


def test_a_placebo_is_not_exported():
    with pytest.raises(ConfigError, match="control and cannot be exported"):
        make_blueprint("placebo", {}).to_module(PORTS, {})


def test_random_frozen_is_random_in_every_tensor_at_birth():
    blueprint = make_blueprint("random_frozen", {})
    params = blueprint.init(PORTS, torch.Generator().manual_seed(0))
    assert all(value.abs().min() > 0 for value in params.values())
    assert params["w2"].abs().max() <= 1 / 16**0.5


def test_random_channels_are_read_by_the_host_from_birth_and_never_train():
    piece = Piece("fc", "linear", 5, 3, reads=5, writes=3)
    params = make_blueprint("random_channels", {}).init(piece, torch.Generator().manual_seed(0))
    usual = make_blueprint("widen", {}).init(piece, torch.Generator().manual_seed(0))
    assert params.keys() == usual.keys()
    assert not usual["old"].any()
    assert 0 < params["old"].abs().max() <= 1
    assert not make_blueprint("random_channels", {}).is_trainable
