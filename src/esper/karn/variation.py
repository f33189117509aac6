"""New genomes from others: one thing changed, or two joined. Whatever comes out is valid where it shall grow."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from esper.contracts.reports import Layout
from esper.karn.drawing import draw, fitting, pruned
from esper.karn.genome import INPUT, Genome, GenomeError, Node, make_node
from esper.karn.operations import HEADS, OPERATIONS

ATTEMPTS = 50
"""To make something that is valid; then a genome is drawn anew."""

Parts = tuple[list[Node], Node]
"""Nodes and a head that need not be a genome."""


def mutate(chance: random.Random, genome: Genome, layout: Layout) -> Genome:
    """A genome in which one thing is another: a setting, a node, what it reads, or the head.

    Args:
        chance: the random stream.
        genome: it stays as it is.
        layout: where the new one shall grow.

    Returns:
        One with another digest.
    """
    return _made(chance, layout, lambda: chance.choice(_CHANGES)(chance, genome, layout), genome)


def cross(chance: random.Random, one: Genome, other: Genome, layout: Layout) -> Genome:
    """A genome of two: the second reads a value of the first, or values of both meet in a sum, product or maximum.

    Args:
        chance: the random stream.
        one, other: they stay as they are.
        layout: where the new one shall grow.

    Returns:
        One with a digest that neither has.
    """
    return _made(chance, layout, lambda: chance.choice((_chained, _joined))(chance, one, other), one, other)


def _made(chance: random.Random, layout: Layout, make: Callable[[], Parts], *known: Genome) -> Genome:
    digests = {one.digest for one in known}
    for _ in range(ATTEMPTS):
        try:
            genome = pruned(*make())
        except GenomeError:
            continue
        if layout in genome.layouts and genome.digest not in digests:
            return genome
    while (genome := draw(chance, layout)).digest in digests:
        pass
    return genome


def _with_a_setting(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    nodes = list(genome.nodes)
    able = [number for number, node in enumerate(nodes) if node.settings]
    if able:
        at = chance.choice(able)
        name, _ = chance.choice(nodes[at].settings)
        value = chance.choice(OPERATIONS[nodes[at].operation].settings[name])
        nodes[at] = make_node(nodes[at].operation, *nodes[at].reads, **nodes[at].named | {name: value})
    return nodes, genome.head


def _with_a_node(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    """One node more, which stands between a value and one of those that read it."""
    at = chance.randrange(len(genome.nodes) + 1)
    new, _ = chance.choice(fitting(chance, layout, genome.values[: at + 1]))
    parts = [*genome.nodes, genome.head]
    later = [replace(node, reads=tuple(read + (read > at) for read in node.reads)) for node in parts[at:]]
    position = chance.randrange(len(later))
    later[position] = _reading(chance, later[position], at + 1)
    return [*genome.nodes[:at], new, *later[:-1]], later[-1]


def _without_a_node(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    """Whoever read it reads what it read."""
    if not genome.nodes:
        return [], genome.head
    gone = chance.randrange(len(genome.nodes)) + 1
    instead = chance.choice(genome.nodes[gone - 1].reads)

    def moved(node: Node) -> Node:
        reads = (instead if read == gone else read for read in node.reads)
        return replace(node, reads=tuple(read - (read > gone) for read in reads))

    nodes = [moved(node) for number, node in enumerate(genome.nodes, start=1) if number != gone]
    return nodes, moved(genome.head)


def _with_another_operation(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    nodes = list(genome.nodes)
    if nodes:
        at = chance.randrange(len(nodes))
        new, _ = chance.choice(fitting(chance, layout, genome.values[: at + 1]))
        nodes[at] = new
    return nodes, genome.head


def _with_another_read(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    parts = [*genome.nodes, genome.head]
    at = chance.randrange(len(parts))
    parts[at] = _reading(chance, parts[at], chance.randrange(at + 1))
    return parts[:-1], parts[-1]


def _with_another_head(chance: random.Random, genome: Genome, layout: Layout) -> Parts:
    return list(genome.nodes), make_node(chance.choice(sorted(HEADS)), *genome.head.reads)


def _chained(chance: random.Random, one: Genome, other: Genome) -> Parts:
    """The other reads a value of the one in place of what the graft reads."""
    first = chance.randint(min(1, len(one.nodes)), len(one.nodes))
    nodes = [*one.nodes, *_after(len(one.nodes), other.nodes, first)]
    return nodes, _after(len(one.nodes), [other.head], first)[0]


def _joined(chance: random.Random, one: Genome, other: Genome) -> Parts:
    """A value of each meet, where two are as wide."""
    known = [
        (i, j) for i, mine in enumerate(one.values) for j, its in enumerate(other.values) if mine.width == its.width
    ]
    mine, its = chance.choice(known)
    nodes = [*one.nodes, *_after(len(one.nodes), other.nodes, INPUT)]
    meeting = chance.choice([name for name, operation in OPERATIONS.items() if operation.arity > 1])
    nodes.append(make_node(meeting, mine, its + len(one.nodes) if its else INPUT))
    return nodes, make_node(chance.choice((one, other)).head.operation, len(nodes))


def _after(count: int, nodes: Sequence[Node], instead: int) -> list[Node]:
    """Nodes that stand behind so many others; what reads the input reads another value instead."""
    return [
        replace(node, reads=tuple(instead if read == INPUT else read + count for read in node.reads)) for node in nodes
    ]


def _reading(chance: random.Random, node: Node, read: int) -> Node:
    """The node with one of its reads another."""
    reads = list(node.reads)
    reads[chance.randrange(len(reads))] = read
    return replace(node, reads=tuple(reads))


_CHANGES = (
    *(_with_a_setting, _with_a_node, _without_a_node),
    *(_with_another_operation, _with_another_read, _with_another_head),
)
