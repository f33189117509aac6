"""One suite that every blueprint passes: those of the catalogue, the controls, and one that a user registered.

Controls are exempt from the zero start and the birth check. The user's is the example of docs/blueprints.md.
"""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprints.birth import birth_fault
from esper.blueprints.blueprint import Blueprint, Ports
from esper.blueprints.catalogue import CATALOGUE, CONTROLS, known_blueprints, make_blueprint

DOCUMENT = Path(__file__).parents[2] / "docs" / "blueprints.md"
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
exec(EXAMPLE, {"__name__": "docs_blueprints"})
KINDS = CATALOGUE | CONTROLS | {"sine_mlp": known_blueprints()["sine_mlp"]}

POSITIONS = {"features": (), "tokens": (5,), "signal": (6,), "image": (4, 3)}
ALL = sorted(KINDS)
ACROSS = {"conv_bottleneck", "depthwise_conv", "mini_attention", "placebo", "sliding_conv", "squeeze_excite"}
"""Those that look at more than one vector: a rule may fail on one layout alone. To the others a layout is a shape."""
WIDTHS = [(1, 1), (1, 7), (5, 1), (2, 2), (63, 64), (3, 100)]


def layouts_of(name: str, turn: int) -> list[str]:
    """All where they matter, else one, in turn."""
    layouts = sorted(KINDS[name].layouts)
    return layouts if name in ACROSS else [layouts[turn % len(layouts)]]


CASES = [(name, layout) for turn, name in enumerate(ALL) for layout in layouts_of(name, turn)]
STARTING_AT_ZERO = [case for case in CASES if KINDS[case[0]].starts_at_zero]
OF_ANY_WIDTH = [
    (name, layout, widths) for name in ALL for turn, widths in enumerate(WIDTHS) for layout in layouts_of(name, turn)
]
LINEAR = {"noop", "affine", "low_rank"}
RELATIVE_ERROR = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float64: 1e-12}

every = pytest.mark.parametrize("name", ALL)
every_case = pytest.mark.parametrize(("name", "layout"), CASES)
starting_at_zero = pytest.mark.parametrize(("name", "layout"), STARTING_AT_ZERO)


def ports_of(name: str, layout: str, inputs: int = 5, outputs: int = 7) -> Ports:
    return Ports(outputs if KINDS[name].keeps_width else inputs, outputs, layout, math.prod(POSITIONS[layout]))


def born(name: str, ports: Ports, **settings) -> tuple[Blueprint, dict[str, Tensor]]:
    blueprint = make_blueprint(name, settings)
    assert blueprint.misfit(ports) is None
    return blueprint, blueprint.init(ports, torch.Generator().manual_seed(0))


def awake(name: str, ports: Ports, seed: int = 1, **settings) -> tuple[Blueprint, dict[str, Tensor]]:
    """With every parameter away from zero, of the size that training gives them, and in float64."""
    blueprint, params = born(name, ports, **settings)
    generator = torch.Generator().manual_seed(seed)
    scale = {key: math.prod(value.shape[1:]) ** -0.5 for key, value in params.items()}
    return blueprint, {
        key: torch.randn(value.shape, generator=generator, dtype=torch.float64) * scale[key]
        for key, value in params.items()
    }


def inputs(ports: Ports, batch: int = 4, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *POSITIONS[ports.layout], ports.inputs, generator=generator, dtype=torch.float64)


def as_dtype(params: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) for key, value in params.items()}


def relative_error(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm().clamp(min=1e-12))


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
    rebuilt = make_blueprint(name, json.loads(json.dumps(blueprint.settings)))
    assert rebuilt == blueprint
    assert hash(rebuilt) == hash(blueprint)


@every
def test_a_layout_is_but_a_shape_to_what_looks_at_one_vector_at_a_time(name):
    """A vector that changes moves what is given at its own place, and elsewhere only for those that are listed."""
    ports = ports_of(name, max(KINDS[name].layouts))
    blueprint, params = awake(name, ports)
    x = inputs(ports)
    before = blueprint.delta(params, x)
    x[0, 0] += 1.0
    changed = (blueprint.delta(params, x) != before).any(-1)
    changed[0, 0] = False
    assert changed.any() == (name in ACROSS)


@pytest.mark.parametrize(("name", "layout", "widths"), OF_ANY_WIDTH, ids=str)
def test_any_width_works(name, layout, widths):
    """Shapes, birth and delta agree, and count what they say. (The norm of one channel is nothing, and says so.)"""
    ports = ports_of(name, layout, *widths)
    if name == "norm_affine" and widths[1] == 1:
        assert "single channel" in make_blueprint(name, {}).misfit(ports)
        return
    blueprint, params = born(name, ports)
    assert {key: tuple(value.shape) for key, value in params.items()} == blueprint.shapes(ports)
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in params.values())
    assert blueprint.num_parameters(ports) == sum(value.numel() for value in params.values())
    for batch in (1, 3):
        x = inputs(ports, batch).float()
        assert blueprint.delta(params, x).shape == (*x.shape[:-1], ports.outputs)


@every
def test_it_fits_its_layouts_and_says_why_not_the_others(name):
    blueprint = make_blueprint(name, {})
    for layout in POSITIONS:
        fault = blueprint.misfit(ports_of(name, layout))
        assert (fault is None) == (layout in blueprint.layouts)
        assert fault is None or f"the place has {layout}" in fault
    layout = min(blueprint.layouts)
    assert "reads='chunk'" in blueprint.misfit(Ports(0, 7, layout))
    assert ("keeps the width" in (blueprint.misfit(Ports(5, 7, layout)) or "")) == blueprint.keeps_width


@every_case
def test_birth_draws_from_its_generator_alone(name, layout):
    ports = ports_of(name, layout)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _, one = born(name, ports)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    _, other = born(name, ports)
    another = make_blueprint(name, {}).init(ports, torch.Generator().manual_seed(9))
    assert all(torch.equal(one[key], other[key]) for key in one)
    differing = [key for key in one if not torch.equal(one[key], another[key])]
    assert differing == [key for key in one if one[key].any()]


@every_case
def test_delta_is_pure(name, layout):
    """It changes nothing, and neither needs nor moves the global random state."""
    ports = ports_of(name, layout)
    blueprint, params = awake(name, ports)
    kept, x = copy.deepcopy(params), inputs(ports)
    first, state = blueprint.delta(params, x), torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(blueprint.delta(params, x), first)
    torch.set_rng_state(state)
    blueprint.delta(params, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs(ports))
    assert all(torch.equal(params[key], kept[key]) for key in kept)


@starting_at_zero
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_at_birth_delta_is_exactly_zero(name, layout, dtype):
    ports = ports_of(name, layout)
    blueprint, params = born(name, ports)
    for scale in (1.0, 1e4):
        x = (inputs(ports) * scale).to(dtype)
        assert not blueprint.delta(as_dtype(params, dtype), x).any()


@starting_at_zero
@pytest.mark.parametrize("width", [1, 2, 7])
def test_it_passes_the_birth_check(name, layout, width):
    if (name, width) != ("norm_affine", 1):
        ports = ports_of(name, layout, width, width)
        assert birth_fault(make_blueprint(name, {}), ports) is None


@starting_at_zero
@pytest.mark.parametrize("smallest", [False, True])
def test_every_tensor_moves_within_ten_steps_of_adamw(name, layout, smallest):
    ports = ports_of(name, layout)
    blueprint, params = born(name, ports, **({KINDS[name].size: 1} if smallest and KINDS[name].size else {}))
    leaves = {key: value.clone().requires_grad_() for key, value in params.items()}
    x, target = inputs(ports).float(), inputs(ports._replace(inputs=ports.outputs), seed=3).float()
    optimizer = torch.optim.AdamW([torch.zeros(1), *leaves.values()], lr=1e-2, weight_decay=0.0)
    for _ in range(10 if leaves else 0):
        (blueprint.delta(leaves, x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [key for key in params if torch.equal(params[key], leaves[key].detach())] == []


@every_case
def test_a_batch_of_grafts_equals_them_one_by_one(name, layout):
    """Outputs and gradients, in float64, of three grafts with three inputs."""
    ports = ports_of(name, layout)
    blueprint = awake(name, ports)[0]
    grafts = [awake(name, ports, seed)[1] for seed in (1, 2, 3)]
    x_G = torch.stack([inputs(ports, seed=seed) for seed in (4, 5, 6)]).requires_grad_()
    stacked = {key: torch.stack([graft[key] for graft in grafts]).requires_grad_() for key in grafts[0]}
    batched_G = torch.vmap(blueprint.delta)(stacked, x_G)
    single_G = torch.stack(
        [blueprint.delta({key: value[g] for key, value in stacked.items()}, x_G[g]) for g in range(3)]
    )
    assert relative_error(batched_G, single_G) < 1e-12
    if name == "noop":
        return
    leaves = [x_G, *stacked.values()]
    weight_G = torch.randn(batched_G.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    seen, expected = (torch.autograd.grad((result * weight_G).sum(), leaves) for result in (batched_G, single_G))
    for one, other in zip(seen, expected, strict=True):
        assert relative_error(one, other) < 1e-12


@every_case
@pytest.mark.parametrize("dtype", RELATIVE_ERROR, ids=str)
def test_delta_works_in_every_dtype(name, layout, dtype):
    ports = ports_of(name, layout, 33, 65)
    blueprint, params = awake(name, ports)
    params, x = as_dtype(params, dtype), inputs(ports, 16).to(dtype)
    output = blueprint.delta(params, x)
    assert output.dtype == dtype
    assert relative_error(output, blueprint.delta(as_dtype(params, torch.float64), x.double())) < RELATIVE_ERROR[dtype]


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_delta_works_under_autocast(name, layout, dtype):
    """float32 parameters and activations of either kind; alone, in a batch of grafts, and backwards."""
    ports = ports_of(name, layout, 33, 65)
    blueprint, params = awake(name, ports)
    params = {key: value.float().requires_grad_() for key, value in params.items()}
    x = inputs(ports, 16).to(dtype)
    expected = blueprint.delta(params, x.float())
    with torch.autocast("cpu", torch.bfloat16):
        output = blueprint.delta(params, x)
        batched = torch.vmap(blueprint.delta)({key: value[None] for key, value in params.items()}, x[None])[0]
    assert relative_error(output, expected) < RELATIVE_ERROR[torch.bfloat16]
    assert relative_error(batched, expected) < RELATIVE_ERROR[torch.bfloat16]
    if params:
        output.float().square().sum().backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in params.values())


@every_case
def test_the_gradients_of_delta_hold_in_float64(name, layout):
    ports = ports_of(name, layout, 3, 2)
    settings = {KINDS[name].size: 2} if KINDS[name].size else {}
    blueprint, params = awake(name, ports, **settings)
    leaves = [value.requires_grad_() for value in params.values()]
    x = inputs(ports, 2)
    if name != "noop":  # what it gives does not depend on x, and so has no gradient to check
        x.requires_grad_()
        function = lambda x, *values: blueprint.delta(dict(zip(params, values, strict=True)), x)  # noqa: E731
        assert torch.autograd.gradcheck(function, (x, *leaves))


@every_case
def test_a_sample_sees_no_other_sample(name, layout):
    """No statistics of the batch. (The placebo sees nothing but another: the negative control.)"""
    ports = ports_of(name, layout)
    blueprint, params = awake(name, ports)
    x = inputs(ports)
    before = blueprint.delta(params, x)
    x[2] += 1.0
    changed = (blueprint.delta(params, x) != before).flatten(1).any(dim=1)
    expected = {"placebo": [False, False, False, True], "noop": [False] * 4}
    assert changed.tolist() == expected.get(name, [False, False, True, False])


@pytest.mark.parametrize("name", [name for name in ALL if "tokens" in KINDS[name].layouts])
@given(time=st.integers(0, 4), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_no_token_sees_the_tokens_after_it(name, time, width, seed):
    ports = ports_of(name, "tokens", width, 3)
    assert not looks_ahead(*awake(name, ports, seed), ports, time)


def looks_ahead(blueprint: Blueprint, params: dict[str, Tensor], ports: Ports, time: int) -> bool:
    x = inputs(ports)
    before = blueprint.delta(params, x)
    x[:, time:] = inputs(ports, seed=3)[:, time:]
    return not torch.equal(blueprint.delta(params, x)[:, :time], before[:, :time])


def test_attention_that_looks_both_ways_would_be_seen():
    """Negative control."""
    ports = Ports(4, 3, "tokens")
    blueprint, params = awake("mini_attention", ports, causal=False)
    assert [looks_ahead(blueprint, params, ports, time) for time in range(5)] == [False, True, True, True, True]


@every_case
def test_what_is_not_called_linear_is_not(name, layout):
    ports = ports_of(name, layout)
    blueprint, params = awake(name, ports)
    x, other = inputs(ports), inputs(ports, seed=3)
    origin = blueprint.delta(params, torch.zeros_like(x))
    sum_of_deltas = blueprint.delta(params, x) + blueprint.delta(params, other) - origin
    assert (relative_error(blueprint.delta(params, x + other), sum_of_deltas) < 1e-12) == (name in LINEAR)


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_module_for_export_equals_delta(name, layout, dtype):
    if name == "placebo":
        return
    ports = ports_of(name, layout)
    blueprint, params = awake(name, ports)
    params, x = as_dtype(params, dtype), inputs(ports).to(dtype)
    module = blueprint.to_module(ports, params)
    torch.testing.assert_close(module(x), blueprint.delta(params, x))
    assert {key: value.dtype for key, value in module.named_parameters()} == dict.fromkeys(params, dtype)
    assert all("esper" not in type(part).__module__ for part in module.modules())
    before = copy.deepcopy(module)(x)
    for value in params.values():
        value.zero_()
    assert torch.equal(module(x), before)


@every_case
def test_the_module_for_export_can_be_exported_by_torch(name, layout):
    """For any number of samples."""
    if name == "placebo":
        return
    ports = ports_of(name, layout)
    blueprint, params = awake(name, ports)
    module, x = blueprint.to_module(ports, params).eval(), inputs(ports)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = inputs(ports, 6, seed=7)
    torch.testing.assert_close(program.module()(more), blueprint.delta(params, more))


@every_case
@pytest.mark.parametrize("bound", ["multiply_adds", "parameters"])
def test_it_is_fitted_into_a_budget(name, layout, bound):
    """The largest that fits, and no smaller one for a larger budget."""
    ports = ports_of(name, layout, 12, 20)
    cost = {"multiply_adds": Blueprint.multiply_adds, "parameters": Blueprint.num_parameters}[bound].__name__
    blueprint, size, last = make_blueprint(name, {}), KINDS[name].size, 0
    for budget in (0, 1, 10, 40, 100, 997, 10_000, 123_456):
        fitted = blueprint.sized(ports, **{bound: budget})
        smallest = blueprint if size is None else replace(blueprint, **{size: 1})
        assert (fitted is None) == (getattr(smallest, cost)(ports) > budget)
        if fitted is None:
            assert last == 0
            continue
        assert getattr(fitted, cost)(ports) <= budget
        if size is None:
            assert fitted == blueprint
            continue
        value = getattr(fitted, size)
        assert value >= last
        assert fitted == replace(blueprint, **{size: value})
        assert getattr(replace(fitted, **{size: value + 1}), cost)(ports) > budget
        last = value


@every_case
def test_its_multiply_adds_are_what_torch_counts(name, layout):
    """But for biases and scales of single channels, which torch does not count: one multiply-add each, rounded up."""
    ports = ports_of(name, layout, 33, 64)
    blueprint, params = awake(name, ports)
    x = inputs(ports)
    with FlopCounterMode(display=False) as counter:
        blueprint.delta(params, x)
    batch, rows = len(x), x[..., 0].numel()
    vectors = sum(value.numel() for value in params.values() if value.dim() == 1)
    gap = blueprint.multiply_adds(ports) * rows - counter.get_total_flops() / 2
    assert batch * vectors <= gap < rows * (vectors + 1)
