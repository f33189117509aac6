"""Genomes by chance: every one of them is valid for the layout that it is drawn for."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from esper.contracts.reports import Layout
from esper.karn.genome import INPUT, Genome, Node, make_node
from esper.karn.operations import HEADS, OPERATIONS, Operation, Setting, Value

MOST = 8
"""Nodes that are drawn."""

RECENT = 0.7
"""Chance that a node reads the value that was made last, so that graphs become deep."""


def draw(chance: random.Random, layout: Layout) -> Genome:
    """A genome that works on a layout, of :data:`MOST` nodes at most; those that nothing reads are left out.

    Args:
        chance: the random stream.
        layout: where it shall grow.
    """
    nodes: list[Node] = []
    values = [Value(0)]
    for _ in range(chance.randint(1, MOST)):
        node, value = chance.choice(fitting(chance, layout, values))
        nodes.append(node)
        values.append(value)
    heads = [name for name, head in HEADS.items() if head.gives([values[-1]], {}) is not None]
    return pruned(nodes, make_node(chance.choice(heads), len(nodes)))


def fitting(chance: random.Random, layout: Layout, values: Sequence[Value]) -> list[tuple[Node, Value]]:
    """One node for each operation that can read some of the values there are, with drawn settings and reads."""
    found = []
    for name, operation in OPERATIONS.items():
        if not (known := _settings(operation, layout)):
            continue
        settings = chance.choice(known)
        reads = [_read(chance, len(values)) for _ in range(operation.arity)]
        value = operation.gives([values[read] for read in reads], settings)
        if value is not None:
            found.append((make_node(name, *reads, **settings), value))
    return found


def pruned(nodes: Sequence[Node], head: Node) -> Genome:
    """The genome of those nodes that the head needs.

    Raises:
        GenomeError: if they are none.
    """
    needed, waiting = set(), [read for read in head.reads if read != INPUT]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += [read for read in nodes[number - 1].reads if read != INPUT]
    new = {INPUT: INPUT} | {old: position for position, old in enumerate(sorted(needed), start=1)}

    def moved(node: Node) -> Node:
        return replace(node, reads=tuple(new[read] for read in node.reads))

    return Genome(tuple(moved(nodes[number - 1]) for number in sorted(needed)), moved(head))


def _settings(operation: Operation, layout: Layout) -> list[dict[str, Setting]]:
    """All with which an operation works on a layout."""
    every = (dict(zip(operation.settings, one, strict=True)) for one in product(*operation.settings.values()))
    return [one for one in every if layout in operation.layouts(one)]


def _read(chance: random.Random, count: int) -> int:
    return count - 1 if chance.random() < RECENT else chance.randrange(count)
