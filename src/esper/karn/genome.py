"""Genomes: blueprints as data. A bounded graph of operations, checked without torch, written as canonical JSON.

A genome cannot express code, files or loops: it is a list of nodes, each with one of a few operations, settings of a
few values each, and the numbers of earlier nodes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from esper.contracts.errors import ConfigError, closest
from esper.contracts.reports import Layout
from esper.karn.operations import ALL, HEADS, KEEPS_WIDTH, MOST_DEGREE, OPERATIONS, Operation, Setting, Value

KIND = "esper.genome/1"
"""What a file says it is; another number cannot be read."""

MOST_NODES = 24
MOST_BYTES = 64 * 1024
INPUT = 0
"""Number of what the graft reads; nodes are counted from 1."""


class GenomeError(ConfigError):
    """A genome that is none, with the reason and what to do."""


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        operation: its name.
        reads: numbers of the values that it reads.
        settings: of the operation.
    """

    operation: str
    reads: tuple[int, ...]
    settings: tuple[tuple[str, Setting], ...] = ()

    @property
    def named(self) -> dict[str, Setting]:
        """Its settings by name."""
        return dict(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {"operation": self.operation, "reads": list(self.reads), **self.named}


@dataclass(frozen=True)
class Genome:
    """A blueprint as data; one that exists is valid.

    Args:
        nodes: each reads what the graft reads (0) or earlier nodes, counted from 1.
        head: how it ends; it reads one value.

    Raises:
        GenomeError: if it is too large, an operation or setting is unknown, values do not go together, a node is not
            used, or there is no layout on which all of it works.
    """

    nodes: tuple[Node, ...]
    head: Node
    values: tuple[Value, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.nodes) > MOST_NODES:
            raise GenomeError(f"The genome has {len(self.nodes)} nodes, and may have {MOST_NODES}. Leave some out.")
        values = [Value(0)]
        for number, node in enumerate(self.nodes, start=1):
            values.append(_value(f"Node {number}", node, OPERATIONS, values))
        _value("The head", self.head, HEADS, values)
        object.__setattr__(self, "values", tuple(values))
        used = {read for node in (*self.nodes, self.head) for read in node.reads}
        if idle := sorted(set(range(1, len(values))) - used):
            raise GenomeError(f"Node {idle[0]} is read by none. Leave it out.")
        if not self.layouts:
            raise GenomeError(
                "Its operations work together on no layout. Take those for tokens, or those for signals and images."
            )

    @property
    def layouts(self) -> frozenset[Layout]:
        """Where all of its operations work."""
        found = ALL
        for node in self.nodes:
            found &= OPERATIONS[node.operation].layouts(node.named)
        return found

    @property
    def keeps_width(self) -> bool:
        """Whether it can only write as many channels as it reads."""
        return self.head.operation in KEEPS_WIDTH

    @cached_property
    def canonical(self) -> "Genome":
        """The same graph with its nodes in the one order that follows from what they compute."""
        return _canonical(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON: the same for graphs that differ only in the order of their nodes."""
        return hashlib.sha256(self.canonical.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Its text, without spaces and with sorted keys."""
        whole = {"kind": KIND, "nodes": [node.to_dict() for node in self.nodes], "head": self.head.to_dict()}
        return json.dumps(whole, sort_keys=True, separators=(",", ":"))


def read_genome(text: str | bytes) -> Genome:
    """The genome of a JSON text from anywhere: it is checked, and nothing of it is ever run.

    Raises:
        GenomeError: if it is no genome of this version.
    """
    if len(text) > MOST_BYTES:
        raise GenomeError(f"The text has {len(text):,} bytes, and a genome has at most {MOST_BYTES:,}.")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GenomeError(f"The text is no JSON: {error}. Export the genome anew.") from None
    if not isinstance(whole, dict) or whole.get("kind") != KIND:
        kind = whole.get("kind") if isinstance(whole, dict) else whole
        raise GenomeError(f"It says that it is {_short(kind)}, and this Esper reads {KIND!r}. Export the genome anew.")
    _check_names("The genome", whole, ("kind", "nodes", "head"))
    if not isinstance(whole["nodes"], list):
        raise GenomeError(f"Its nodes are {_short(whole['nodes'])}, and must be a list.")
    if len(whole["nodes"]) > MOST_NODES:
        raise GenomeError(f"The genome has {len(whole['nodes'])} nodes, and may have {MOST_NODES}. Leave some out.")
    nodes = tuple(_node(f"Node {number}", one, OPERATIONS) for number, one in enumerate(whole["nodes"], start=1))
    return Genome(nodes, _node("The head", whole["head"], HEADS))


def make_node(operation: str, *reads: int, **settings: Setting) -> Node:
    """A node, with its settings in their order; it is checked where it becomes part of a genome."""
    return Node(operation, reads, tuple(sorted(settings.items())))


def _node(who: str, one: Any, known: Mapping[str, Operation]) -> Node:
    if not isinstance(one, dict):
        raise GenomeError(f"{who} is {_short(one)}, and must be an object with an operation.")
    operation = one.get("operation")
    if not isinstance(operation, str) or operation not in known:
        raise GenomeError(f"{who}: there is no operation {_short(operation)}. {closest(str(operation)[:40], known)}")
    _check_names(who, one, ("operation", "reads", *known[operation].settings))
    reads = one["reads"]
    if not isinstance(reads, list) or any(type(read) is not int for read in reads):
        raise GenomeError(f"{who} reads {_short(reads)}, and must read a list of numbers of values.")
    return make_node(operation, *reads, **{name: one[name] for name in known[operation].settings})


def _value(who: str, node: Node, known: Mapping[str, Operation], before: Sequence[Value]) -> Value:
    """What a node gives.

    Raises:
        GenomeError: if it cannot be.
    """
    operation = known.get(node.operation)
    if operation is None:
        raise GenomeError(f"{who}: there is no operation {node.operation!r}. {closest(node.operation, known)}")
    _check_names(who, node.named, tuple(operation.settings))
    for name, value in node.settings:
        allowed = operation.settings[name]
        if not any(type(value) is type(one) and value == one for one in allowed):
            told = ", ".join(map(repr, allowed))
            raise GenomeError(f"{who}: {name} of {node.operation!r} is {_short(value)}, and may be one of {told}.")
    if len(node.reads) != operation.arity:
        raise GenomeError(f"{who}: {node.operation!r} reads {operation.arity} values, not {len(node.reads)}.")
    for read in node.reads:
        if not 0 <= read < len(before):
            raise GenomeError(
                f"{who} reads value {_short(read)}; there are 0 to {len(before) - 1} before it, no cycles."
            )
    gives = operation.gives([before[read] for read in node.reads], node.named)
    if gives is None:
        told = " and ".join(map(_told, (before[read] for read in node.reads)))
        raise GenomeError(
            f"{who}: {node.operation!r} cannot read {told}. Values that meet have one width; what looks at positions "
            f"reads none that is pooled; none has a degree above {MOST_DEGREE}."
        )
    return gives


def _check_names(who: str, found: Mapping[str, Any], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in found]:
        raise GenomeError(f"{who} has no {missing[0]!r}. Write it down.")
    if strange := [name for name in found if name not in wanted]:
        raise GenomeError(
            f"{who} has {_short(strange[0])}, which means nothing. {closest(str(strange[0])[:40], wanted)}"
        )


def _told(value: Value) -> str:
    width = "as many channels as the graft reads" if not value.width else f"{value.width} times the hidden width"
    return f"{width}{', pooled' if value.is_pooled else ''}, of degree {value.degree}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _canonical(genome: Genome) -> Genome:
    """Nodes in the order in which they are needed, depth first; where order is nothing, the smaller digest first."""
    digests = _digests(genome)
    placed: dict[int, int] = {INPUT: INPUT}
    nodes: list[Node] = []

    def place(number: int) -> int:
        if number not in placed:
            node = genome.nodes[number - 1]
            reads = tuple(place(read) for read in _ordered(node, digests))
            nodes.append(replace(node, reads=reads))
            placed[number] = len(nodes)
        return placed[number]

    head = replace(genome.head, reads=tuple(map(place, genome.head.reads)))
    return Genome(tuple(nodes), head)


def _digests(genome: Genome) -> list[str]:
    """Of each value: what it is made of, and what is made of it. Values that agree in both may stand for each other."""
    parts = [*genome.nodes, genome.head]
    made_of = [""]
    for node in parts:
        made_of.append(_digest(node.operation, node.settings, [made_of[read] for read in _ordered(node, made_of)]))
    readers: list[list[str]] = [[] for _ in made_of]
    found = [""] * len(made_of)
    for number in reversed(range(len(made_of))):
        found[number] = _digest(made_of[number], sorted(readers[number]))
        if number != INPUT:
            node = parts[number - 1]
            for position, read in enumerate(node.reads):
                readers[read].append(_digest(found[number], 0 if _commutes(node) else position))
    return found


def _ordered(node: Node, digests: Sequence[str]) -> Sequence[int]:
    return sorted(node.reads, key=lambda read: digests[read]) if _commutes(node) else node.reads


def _commutes(node: Node) -> bool:
    return node.operation in OPERATIONS and OPERATIONS[node.operation].commutes


def _digest(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
