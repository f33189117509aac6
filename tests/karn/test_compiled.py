"""Genomes by chance become blueprints that keep the contract, as those that somebody wrote do."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import esper
from esper.blueprints.birth import birth_fault
from esper.blueprints.blueprint import Ports
from esper.blueprints.catalogue import make_blueprint
from esper.contracts.config import GrowthConfig
from esper.karn.compiled import Compiled, blueprint_of
from esper.karn.drawing import draw
from esper.karn.genome import Genome, make_node
from tests.conformance.test_blueprints import POSITIONS, as_dtype, inputs, looks_ahead, relative_error

LAYOUTS = sorted(POSITIONS)
SOME, ALL = range(80), range(80, 1000)


def drawn(seed: int) -> tuple[Compiled, Ports]:
    layout = LAYOUTS[seed % len(LAYOUTS)]
    blueprint = blueprint_of(draw(random.Random(seed), layout))()
    return blueprint, Ports(7 if blueprint.keeps_width else 5, 7, layout, math.prod(POSITIONS[layout]))


def awake(blueprint: Compiled, ports: Ports, seed: int = 1) -> dict[str, Tensor]:
    """Parameters away from zero, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * math.prod(shape[1:]) ** -0.5
        for name, shape in blueprint.shapes(ports).items()
    }


def check(seed: int) -> str | None:
    """All that is asked of a blueprint; gives why it is refused at birth."""
    blueprint, ports = drawn(seed)
    assert blueprint.misfit(ports) is None
    for width in (2, 6):
        if fault := birth_fault(blueprint, ports._replace(inputs=width, outputs=width)):
            return fault
    born = blueprint.init(ports, torch.Generator().manual_seed(0))
    assert {name: tuple(value.shape) for name, value in born.items()} == blueprint.shapes(ports)
    for dtype in (torch.float32, torch.bfloat16):
        for scale in (1.0, 1e4):
            assert not blueprint.delta(as_dtype(born, dtype), (inputs(ports) * scale).to(dtype)).any()
    params, x = awake(blueprint, ports), inputs(ports)
    delta = blueprint.delta(params, x)
    assert delta.shape == (*x.shape[:-1], ports.outputs)
    _check_a_batch(blueprint, ports)
    torch.testing.assert_close(blueprint.to_module(ports, params)(x), delta)
    other = x.clone()
    other[2] += 1.0
    assert torch.equal((blueprint.delta(params, other) != delta).flatten(1).any(1), torch.arange(4) == 2)
    if ports.layout == "tokens":
        assert not any(looks_ahead(blueprint, params, ports, time) for time in range(5))
    _check_costs(blueprint, ports)
    return None


def _check_a_batch(blueprint: Compiled, ports: Ports) -> None:
    """Outputs and gradients of three grafts with three inputs are those of each alone."""
    grafts = [awake(blueprint, ports, seed) for seed in (1, 2, 3)]
    x_G = torch.stack([inputs(ports, seed=seed) for seed in (4, 5, 6)]).requires_grad_()
    stacked = {name: torch.stack([graft[name] for graft in grafts]).requires_grad_() for name in grafts[0]}
    batched_G = torch.vmap(blueprint.delta)(stacked, x_G)
    single_G = torch.stack([blueprint.delta({name: one[g] for name, one in stacked.items()}, x_G[g]) for g in range(3)])
    assert relative_error(batched_G, single_G) < 1e-10
    leaves = [x_G, *stacked.values()]
    seen, expected = (torch.autograd.grad(result.square().sum(), leaves) for result in (batched_G, single_G))
    for one, other in zip(seen, expected, strict=True):
        assert relative_error(one, other) < 1e-10


def _check_costs(blueprint: Compiled, ports: Ports) -> None:
    """As torch counts, which leaves out biases and scales."""
    params, x = awake(blueprint, ports), inputs(ports)
    with FlopCounterMode(display=False) as counter:
        blueprint.delta(params, x)
    rows = x[..., 0].numel()
    gap = blueprint.multiply_adds(ports) * rows - counter.get_total_flops() / 2
    vectors = sum(value.numel() for value in params.values() if value.dim() == 1)
    assert 0 <= gap < rows * (vectors + 1)


@pytest.mark.parametrize("layout", range(len(LAYOUTS)), ids=LAYOUTS)
def test_genomes_by_chance_keep_the_contract(layout):
    for seed in SOME[layout :: len(LAYOUTS)]:
        assert check(seed) is None


@pytest.mark.long
def test_a_thousand_genomes_by_chance_keep_the_contract_or_are_refused_with_a_reason():
    refused = [fault for seed in ALL if (fault := check(seed))]
    print(f"{len(ALL) - len(refused)} keep the contract, {len(refused)} are refused")
    assert len(refused) < 0.02 * len(ALL)
    assert all("received no gradient" in fault for fault in refused)


def test_a_genome_says_what_it_computes():
    """A gated hidden layer, beside the blueprint that somebody wrote."""
    genome = Genome(
        (
            *(make_node("linear", 0, width=2), make_node("linear", 0, width=2)),
            *(make_node("activation", 1, of="silu"), make_node("product", 3, 2)),
        ),
        make_node("linear", 4),
    )
    blueprint, glu, ports = blueprint_of(genome)(hidden=3), make_blueprint("glu", {"hidden": 6}), Ports(5, 7)
    assert blueprint.parameters_of(ports) == glu.parameters_of(ports)
    assert blueprint.multiply_adds(ports) == glu.multiply_adds(ports)
    params, x = awake(blueprint, ports), inputs(ports)
    gate, value = (params[f"{at}_weight"] for at in _linears(blueprint))
    gate_bias, value_bias = (params[f"{at}_bias"] for at in _linears(blueprint))
    same = {
        "w1": torch.cat([gate, value]),
        "b1": torch.cat([gate_bias, value_bias]),
        "w2": params["head_weight"],
        "b2": params["head_bias"],
    }
    torch.testing.assert_close(blueprint.delta(params, x), glu.delta(same, x))


def _linears(blueprint: Compiled) -> list[int]:
    """Numbers of the nodes of the gate and of the value."""
    nodes = blueprint.genome.nodes
    gate = next(node.reads[0] for node in nodes if node.operation == "activation")
    return [gate, next(number for number, node in enumerate(nodes, 1) if node.operation == "linear" and number != gate)]


def test_a_norm_of_one_channel_is_refused():
    nodes = make_node("activation", 0, of="gelu"), make_node("norm", 1)
    blueprint = blueprint_of(Genome(nodes, make_node("linear", 2)))()
    assert "one channel" in blueprint.misfit(Ports(1, 4))
    assert blueprint.misfit(Ports(2, 4)) is None


def test_one_that_keeps_the_width_reads_its_chunk():
    kind = blueprint_of(Genome((make_node("activation", 0, of="gelu"),), make_node("scale", 1)))
    assert kind().reads == "chunk"
    assert kind.size is None
    assert "keeps the width" in kind().misfit(Ports(3, 4))


def test_a_run_grows_one_and_gives_a_plain_model():
    """Told to grow it whatever it is worth; the run's report names it, and the export computes what the run does."""
    kind = esper.register_blueprint(blueprint_of(draw(random.Random(4), "features")))
    torch.manual_seed(0)
    x = torch.randn(96, 5)
    y = (x.prod(1) > 0).long()
    host = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    config = GrowthConfig(max_rounds=0, blueprints=[kind.id], capacity_per_round=4.0, max_growth=8.0)
    model = esper.wrap(host, config, example=x)
    loader = esper.BatchLoader((x, y), batch_size=32, seed=0)

    def evaluate(model):
        logits = model(x)
        return esper.Evaluation(losses=F.cross_entropy(logits, y, reduction="none"), correct=logits.argmax(1) == y)

    session = esper.Session(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=evaluate,
        planned_steps=40 * len(loader),
        loader=loader,
    )
    for epoch in range(40):
        if epoch == 2:
            session.germinate("0", "all", blueprint=kind.id)
        for batch in loader:
            session.step(batch)
        session.after_epoch()
    session.finish()
    (report,) = session.field_reports
    assert report.blueprint == kind.id
    plain = esper.export(model).eval()
    torch.testing.assert_close(plain(x), model.eval()(x))
    assert not any("esper" in type(part).__module__ for part in plain.modules())
