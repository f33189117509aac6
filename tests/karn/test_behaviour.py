"""Duplicates are found by what they do."""

import random

import pytest

from esper.contracts.reports import POSITION_AXES
from esper.karn.behaviour import behaviour
from esper.karn.drawing import draw
from esper.karn.genome import Genome, make_node


def of(*activations: str) -> Genome:
    nodes = [make_node("linear", 0, width=2)]
    nodes += [make_node("activation", number, of=name) for number, name in enumerate(activations, start=1)]
    return Genome(tuple(nodes), make_node("linear", len(nodes)))


def test_what_changes_nothing_is_a_duplicate():
    """Negative control: what changes something is none."""
    assert of("absolute").digest != of("absolute", "relu").digest
    assert behaviour(of("absolute"), "features") == behaviour(of("absolute", "relu"), "features")
    assert behaviour(of("absolute"), "features") != behaviour(of("relu"), "features")


@pytest.mark.parametrize("layout", sorted(POSITION_AXES))
def test_few_that_are_drawn_are_duplicates_and_none_is_of_itself_alone(layout):
    genomes = {genome.digest: genome for genome in (draw(random.Random(seed), layout) for seed in range(150))}
    found = {behaviour(genome, layout) for genome in genomes.values()}
    assert 0.8 * len(genomes) < len(found) <= len(genomes)
    assert all(behaviour(genome, layout) in found for genome in genomes.values())
