"""One suite that every blueprint passes, those of the catalogue and the controls.

Controls are exempt from the zero start and the birth check.
"""

import copy

import pytest
import torch
from torch import nn

from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import CATALOGUE, CONTROLS, make_blueprint
from esper.contracts.errors import ConfigError
from esper.contracts.lifecycle import State
from esper.kasmina.slot_optimizer import SlotOptimizer
from tests.kasmina.growing import grow, host_grads, mlp, place_of, wrapped
from tests.kasmina.oracle import grown_by_loop

ALL = sorted(CATALOGUE | CONTROLS)
STARTING_AT_ZERO = [name for name in ALL if (CATALOGUE | CONTROLS)[name].starts_at_zero]
TRAINABLE = [name for name in ALL if (CATALOGUE | CONTROLS)[name].is_trainable]
EXPORTABLE = sorted(set(ALL) - {"placebo"})
WIDTHS = [(1, 1), (1, 7), (5, 1), (63, 64), (3, 100)]
RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float64: 1e-12}

every = pytest.mark.parametrize("name", ALL)
reads_both = pytest.mark.parametrize("reads", ["chunk", "input"])


def born(name: str, ports: Ports, **settings):
    blueprint = make_blueprint(name, settings)
    return blueprint, blueprint.init(ports, torch.Generator().manual_seed(0))


def awake(name: str, ports: Ports, **settings):
    """With every parameter away from zero, and in float64."""
    blueprint, params = born(name, ports, **settings)
    generator = torch.Generator().manual_seed(1)
    params = {key: torch.randn(value.shape, generator=generator).double() * 0.5 for key, value in params.items()}
    return blueprint, params


def inputs(ports: Ports, *leading: int) -> torch.Tensor:
    return torch.randn(*leading, ports.inputs, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_controls_are_never_in_the_default_catalogue():
    assert set(CONTROLS) == {"placebo", "random_frozen"}
    assert CATALOGUE.keys().isdisjoint(CONTROLS)
    assert all(kind.starts_at_zero and kind.is_trainable for kind in CATALOGUE.values())
    assert not any(kind.starts_at_zero for kind in CONTROLS.values())


@every
def test_it_is_found_under_its_id_and_rebuilt_from_its_settings(name):
    blueprint = make_blueprint(name, {"reads": "chunk"})
    assert blueprint.id == name
    assert blueprint.reads == "chunk"
    assert make_blueprint(name, blueprint.settings) == blueprint
    assert hash(blueprint) == hash(make_blueprint(name, blueprint.settings))


@every
@pytest.mark.parametrize("ports", WIDTHS, ids=str)
def test_any_width_works(name, ports):
    """Shapes, birth and delta agree, and count what they say."""
    ports = Ports(*ports)
    blueprint, params = born(name, ports)
    assert {key: tuple(value.shape) for key, value in params.items()} == blueprint.shapes(ports)
    assert blueprint.num_parameters(ports) == sum(value.numel() for value in params.values())
    for leading in ((1,), (4,), (2, 3)):
        assert blueprint.delta(params, inputs(ports, *leading).float()).shape == (*leading, ports.outputs)


@every
def test_birth_draws_from_its_generator_alone(name):
    ports = Ports(5, 7)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _, one = born(name, ports)
    torch.rand(1)
    _, other = born(name, ports)
    torch.set_rng_state(before)
    third = make_blueprint(name, {}).init(ports, torch.Generator().manual_seed(9))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(one[key], third[key]) for key in one)
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in one.values())


@every
def test_delta_is_pure(name):
    ports = Ports(5, 7)
    blueprint, params = awake(name, ports)
    kept, x = copy.deepcopy(params), inputs(ports, 4)
    first = blueprint.delta(params, x)
    torch.manual_seed(0)
    assert torch.equal(blueprint.delta(params, x), first)
    assert torch.equal(x, inputs(ports, 4))
    assert all(torch.equal(params[key], kept[key]) for key in kept)


@every
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_delta_works_in_every_dtype(name, dtype):
    ports = Ports(33, 65)
    blueprint, params = awake(name, ports)
    x = inputs(ports, 64)
    reference = blueprint.delta(params, x)
    output = blueprint.delta({key: value.to(dtype) for key, value in params.items()}, x.to(dtype))
    rounded = blueprint.delta({key: value.to(dtype).double() for key, value in params.items()}, x.to(dtype).double())
    assert output.dtype == dtype
    assert float((output.double() - rounded).norm() / reference.norm()) < RELATIVE_ERROR[dtype]


@every
def test_the_gradients_of_delta_hold_in_float64(name):
    ports = Ports(3, 4)
    blueprint, params = awake(name, ports, hidden=2)
    leaves = [value.requires_grad_() for value in params.values()]
    x = inputs(ports, 3).requires_grad_()

    def delta(x, *values):
        return blueprint.delta(dict(zip(params, values, strict=True)), x)

    assert torch.autograd.gradcheck(delta, (x, *leaves))


# In a host


def model_with(name: str, reads: str, state: State = State.FINE_TUNING, scale: float | None = None) -> nn.Module:
    """Four seeds of uneven chunks at the middle layer, all grown, at full alpha."""
    model = wrapped(mlp(6, 8, 11, 4), {"2": 4})
    for seed in range(4):
        grow(place_of(model, "2"), seed, state, blueprint=name, hidden=3, reads=reads, scale=scale)
    return model


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def run(model: nn.Module):
    x, target = batch()
    x.requires_grad_()
    output = model(x)
    nn.functional.cross_entropy(output, target).backward()
    return {"output": output.detach(), "dx": x.grad, **host_grads(model)}


@reads_both
@pytest.mark.parametrize("name", STARTING_AT_ZERO)
def test_at_birth_it_is_the_exact_identity(name, reads):
    """Outputs and host gradients, to the bit, at full alpha."""
    seen, expected = run(model_with(name, reads)), run(mlp(6, 8, 11, 4))
    assert [key for key in expected if not torch.equal(seen[key], expected[key])] == []


def test_a_blueprint_that_does_not_start_at_zero_would_be_seen():
    """Negative control."""
    seen, expected = run(model_with("random_frozen", "input")), run(mlp(6, 8, 11, 4))
    assert not torch.equal(seen["output"], expected["output"])
    assert not torch.equal(seen["dx"], expected["dx"])


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SlotOptimizer(model, optimizer, lambda: 1e-2, weight_decay=0.0)
    for _ in range(steps):
        run(model)
        optimizer.step()
        optimizer.zero_grad()


def tensors_of(model: nn.Module) -> list[dict[str, torch.Tensor]]:
    arena = place_of(model, "2").arena
    return [
        {key: value.clone() for key, value in graft.unflatten(arena.params_of(graft).detach()).items()}
        for graft in arena.live
    ]


@reads_both
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_tensor_moves_within_ten_steps_of_birth(name, reads):
    """The birth check: a tensor that cannot receive gradient is dead weight."""
    model = model_with(name, reads)
    before = tensors_of(model)
    train(model, 10)
    for old, new in zip(before, tensors_of(model), strict=True):
        assert [key for key in old if torch.equal(old[key], new[key])] == []


@reads_both
@pytest.mark.parametrize("name", sorted(set(ALL) - set(TRAINABLE)))
def test_what_is_not_trainable_never_moves(name, reads):
    model = model_with(name, reads)
    before = tensors_of(model)
    train(model, 10)
    for old, new in zip(before, tensors_of(model), strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)


@reads_both
@every
def test_a_batch_of_grafts_equals_them_one_by_one(name, reads):
    place = place_of(model_with(name, reads, scale=0.5), "2")
    generator = torch.Generator().manual_seed(7)
    results = []
    for function in (
        lambda y, x: place.arena.add_to(y, x, place.state, raises_faults=True),
        lambda y, x: grown_by_loop(place, y, x),
    ):
        generator.manual_seed(7)
        x = torch.randn(5, 8, generator=generator).requires_grad_()
        y = torch.randn(5, 11, generator=generator).requires_grad_()
        output = function(y, x)
        leaves = [y, *([x] if reads == "input" else []), *([place.arena.slots] if name in TRAINABLE else [])]
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    torch.testing.assert_close(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        assert float((one - other).detach().norm() / other.detach().norm()) < 1e-5


@reads_both
@pytest.mark.parametrize("name", EXPORTABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_the_module_for_export_equals_delta(name, reads, dtype):
    ports = Ports(5, 5 if reads == "chunk" else 9)
    blueprint, params = awake(name, ports, reads=reads)
    params = {key: value.to(dtype) for key, value in params.items()}
    module = blueprint.to_module(ports, params)
    x = inputs(ports, 4, 2).to(dtype)
    torch.testing.assert_close(module(x), blueprint.delta(params, x))
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    assert all("esper" not in type(part).__module__ for part in module.modules())
    assert sum(parameter.numel() for parameter in module.parameters()) == blueprint.num_parameters(ports)


@every
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden must be a whole number of at least 1, not 0"),
        ({"hidden": 2.5}, "hidden must be .* not 2.5"),
        ({"hidden": "8"}, "hidden must be .* not '8'"),
        ({"reads": "output"}, "reads must be 'input' or 'chunk', not 'output'"),
        ({"hiden": 3}, "no setting 'hiden'. Did you mean 'hidden'"),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_by_name(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_blueprint(name, settings)
