"""What is changed or joined is valid, grows where it shall, and is something else."""

import random

import pytest

from esper.blueprints.birth import birth_fault
from esper.blueprints.blueprint import Ports
from esper.contracts.reports import POSITION_AXES
from esper.karn import variation
from esper.karn.compiled import blueprint_of
from esper.karn.drawing import draw
from esper.karn.genome import Genome, make_node, read_genome
from esper.karn.operations import HEADS, OPERATIONS
from esper.karn.variation import cross, mutate

LAYOUTS = sorted(POSITION_AXES)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_line_of_mutations_stays_valid_and_reaches_every_operation(layout):
    chance = random.Random(0)
    genome, seen = draw(chance, layout), set()
    for _ in range(600):
        new = mutate(chance, genome, layout)
        assert new.digest != genome.digest
        assert layout in new.layouts
        assert read_genome(new.to_json()) == new
        seen |= {node.operation for node in (*new.nodes, new.head)}
        genome = new
    fit = {name for name in OPERATIONS if any(name == node.operation for one in drawn(layout) for node in one.nodes)}
    assert seen == fit | set(HEADS)


def drawn(layout: str) -> list[Genome]:
    return [draw(random.Random(seed), layout) for seed in range(200)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_are_joined_to_one_that_is_neither(layout, monkeypatch):
    """Few are drawn anew, so that what comes out is of its parents."""
    new = 0

    def counted(*what):
        nonlocal new
        new += 1
        return draw(*what)

    monkeypatch.setattr(variation, "draw", counted)
    chance, parents = random.Random(1), drawn(layout)
    for _ in range(300):
        one, other = chance.sample(parents, 2)
        child = cross(chance, one, other, layout)
        assert child.digest not in (one.digest, other.digest)
        assert layout in child.layouts
    assert new < 15


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_comes_out_can_be_born(layout):
    chance, parents = random.Random(2), drawn(layout)
    refused = 0
    for _ in range(30):
        one, other = chance.sample(parents, 2)
        for genome in (cross(chance, one, other, layout), mutate(chance, one, layout)):
            refused += birth_fault(blueprint_of(genome)(), Ports(6, 6, layout)) is not None
    assert refused <= 3


def test_the_same_stream_gives_the_same():
    genome = drawn("tokens")[0]
    one, other, another = (mutate(random.Random(seed), genome, "tokens") for seed in (3, 3, 4))
    assert one == other
    assert one != another


def test_one_for_tokens_can_be_bred_for_images():
    """What works on tokens alone goes; where nothing of it can stay one is drawn."""
    genome = Genome((make_node("attention", 0, heads=2), make_node("norm", 1)), make_node("linear", 2))
    found = [mutate(random.Random(seed), genome, "image") for seed in range(20)]
    assert all("image" in one.layouts for one in found)
