"""From a genome to a blueprint: two pure functions of a few of torch's operations.

Every value is in the layout of what the graft reads, channels last; one that is pooled is ``[batch, 1, channels]``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from esper.blueprints.blueprint import Blueprint, Ports
from esper.blueprints.convolution import convolve
from esper.blueprints.mini_attention import attend
from esper.contracts.reports import POSITION_AXES
from esper.karn.genome import Genome, Node
from esper.karn.operations import HEADS, OPERATIONS, Operation, Settings, Shapes, Value

HEAD = "head"
PREFIX = "karn_"
LEAST_VARIANCE = 1e-5
"""Added to the variance that a norm divides by."""

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Compiled(Blueprint):
    """A blueprint that follows a genome; each genome has a class of its own.

    Args:
        hidden: the hidden width, of which the genome's widths are multiples.
    """

    family: ClassVar[str] = "karn"
    size: ClassVar[str | None] = "hidden"
    genome: ClassVar[Genome]

    hidden: int = 4

    def shapes(self, ports: Ports) -> Shapes:
        return {f"{at}_{name}": shape for at, own in self._nodes(ports) for name, shape in own.items()}

    def init(self, ports: Ports, generator: Generator) -> Params:
        """As :class:`torch.nn.Linear` draws; scales are 1, shifts 0, and all of the head is 0."""
        params: Params = {}
        for at, own in self._nodes(ports):
            bound = 0.0
            for name, shape in own.items():
                value = params[f"{at}_{name}"] = torch.zeros(shape)
                if at == HEAD or name == "shift":
                    continue
                if name == "scale":
                    value.fill_(1.0)
                    continue
                bound = bound if name == "bias" else 1 / math.sqrt(math.prod(shape[1:]))
                value.uniform_(-bound, bound, generator=generator)
        return params

    def delta(self, params: Params, x: Tensor) -> Tensor:
        values, known = [x], self.genome.values
        for number, node in enumerate(self.genome.nodes, start=1):
            reads = [values[read] for read in node.reads]
            if node.operation in _MEETINGS:
                values.append(_met(_MEETINGS[node.operation], reads, [known[read].is_pooled for read in node.reads]))
            else:
                own = {name: params[f"{number}_{name}"] for name in _NAMES[node.operation]}
                values.append(_OPERATIONS[node.operation](reads[0], own, node.named))
        head, (last,) = self.genome.head.operation, self.genome.head.reads
        own = {name: params[f"{HEAD}_{name}"] for name in _NAMES_OF_HEADS[head]}
        if head == "gate":
            return _met(torch.mul, [x, torch.tanh(_linear(values[last], own, {}))], [False, known[last].is_pooled])
        return _OPERATIONS[head](values[last], own, {})

    def misfit(self, ports: Ports) -> str | None:
        values = zip(self.genome.nodes, self.genome.values[1:], strict=True)
        is_of_input = any(node.operation == "norm" and not value.width for node, value in values)
        if is_of_input and ports.pieces is None and ports.inputs == 1:
            return "it takes the norm over the channels that it reads, and here is one channel"
        return super().misfit(ports)

    def multiply_adds(self, ports: Ports) -> int:
        """The parameters of its linear maps, convolutions and scales; of what is pooled, shared by the positions of a
        sample; of attention, also two products of every token with every token."""
        pooled = spread = 0
        for at, own in self._nodes(ports):
            work = sum(map(math.prod, own.values()))
            node = self._node(at)
            if at != HEAD and node.operation == "attention":
                work += 2 * ports.positions * self._channels(self.genome.values[int(at)], ports)
            if self.genome.values[node.reads[0]].is_pooled:
                pooled += work
            else:
                spread += work
        return spread - (-pooled // ports.positions)

    def _nodes(self, ports: Ports) -> list[tuple[str, Shapes]]:
        """Those that have parameters, by their number, and the head; with the shapes of these."""
        found, axes = [], POSITION_AXES[ports.layout]
        for number, node in enumerate(self.genome.nodes, start=1):
            reads, gives = (self._channels(self.genome.values[one], ports) for one in (node.reads[0], number))
            found.append((f"{number}", OPERATIONS[node.operation].shapes(reads, gives, node.named, axes)))
        head = self.genome.head
        reads = self._channels(self.genome.values[head.reads[0]], ports)
        found.append((HEAD, HEADS[head.operation].shapes(reads, ports.outputs, {}, axes)))
        return [(at, own) for at, own in found if own]

    def _node(self, at: str) -> Node:
        return self.genome.head if at == HEAD else self.genome.nodes[int(at) - 1]

    def _channels(self, value: Value, ports: Ports) -> int:
        return value.width * self.hidden or ports.inputs


@dataclass(frozen=True)
class _ReadsChunk(Compiled):
    reads: Literal["input", "chunk"] = "chunk"


def blueprint_of(genome: Genome) -> type[Compiled]:
    """The class of a genome's blueprints; its id follows from what the genome computes. It is not registered."""
    whole = genome.canonical
    base: type[Compiled] = _ReadsChunk if whole.keeps_width else Compiled
    name = f"{PREFIX}{whole.digest[:12]}"
    own = {
        "__doc__": f"Follows the genome {whole.digest}.",
        "__module__": __name__,
        "id": name,
        "genome": whole,
        "layouts": whole.layouts,
        "keeps_width": whole.keeps_width,
        "size": "hidden" if any(value.width for value in whole.values) else None,
    }
    return dataclass(frozen=True)(type(name, (base,), own))


def _names(operation: Operation) -> tuple[str, ...]:
    """Of an operation's parameters, whatever its settings."""
    return tuple(operation.shapes(1, 1, {name: values[0] for name, values in operation.settings.items()}, 1))


_NAMES = {name: _names(operation) for name, operation in OPERATIONS.items()}
_NAMES_OF_HEADS = {name: _names(head) for name, head in HEADS.items()}


def _met(operation: Callable[[Tensor, Tensor], Tensor], values: list[Tensor], is_pooled: list[bool]) -> Tensor:
    """Two values of which one may be pooled: that one meets every position of the other."""
    one, other = values
    if is_pooled[0] == is_pooled[1]:
        return operation(one, other)
    spread, pooled = (other, one) if is_pooled[0] else (one, other)
    return operation(spread.flatten(1, -2), pooled).reshape_as(spread)


def _linear(x: Tensor, own: Params, settings: Settings) -> Tensor:
    return F.linear(x, own["weight"], own["bias"])


def _low_rank(x: Tensor, own: Params, settings: Settings) -> Tensor:
    return F.linear(F.linear(x, own["down"]), own["up"], own["bias"])


def _scale(x: Tensor, own: Params, settings: Settings) -> Tensor:
    return x * own["scale"] + own["shift"]


def _depthwise(x: Tensor, own: Params, settings: Settings) -> Tensor:
    weight, kernel = own["weight"], int(settings["kernel"])
    if settings["causal"]:
        return convolve(F.pad(x, (0, 0, kernel - 1, 0)), weight, own["bias"], padding=0, groups=weight.shape[0])
    return convolve(x, weight, own["bias"], padding=kernel // 2, groups=weight.shape[0])


def _attention(x: Tensor, own: Params, settings: Settings) -> Tensor:
    return attend(x, own["weight"], int(settings["heads"]), is_causal=True)


def _norm(x: Tensor, own: Params, settings: Settings) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + LEAST_VARIANCE).rsqrt()


def _activation(x: Tensor, own: Params, settings: Settings) -> Tensor:
    return _ACTIVATIONS[str(settings["of"])](x)


def _shift(x: Tensor, own: Params, settings: Settings) -> Tensor:
    by, axis = int(settings["by"]), int(settings["axis"])
    ends = (by, 0) if by > 0 else (0, -by)
    padded = F.pad(x, (0, 0) * axis + ends)
    return padded.narrow(-1 - axis, 0 if by > 0 else -by, x.shape[-1 - axis])


def _pool(x: Tensor, own: Params, settings: Settings) -> Tensor:
    if settings["causal"]:
        return x.cumsum(1) / torch.ones_like(x).cumsum(1)
    return x.flatten(1, -2).mean(1, keepdim=True)


_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
    "square": torch.square,
    "absolute": torch.abs,
}
_OPERATIONS: Mapping[str, Callable[[Tensor, Params, Settings], Tensor]] = {
    "linear": _linear,
    "low_rank": _low_rank,
    "depthwise": _depthwise,
    "attention": _attention,
    "norm": _norm,
    "scale": _scale,
    "activation": _activation,
    "shift": _shift,
    "pool": _pool,
}
_MEETINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "product": torch.mul,
    "maximum": torch.maximum,
}
