"""What genomes are made of: operations with few settings each, where they work, and which parameters they have.

Plain data; torch comes in where a genome is compiled (:mod:`esper.karn.compiled`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from esper.contracts.reports import POSITION_AXES, Layout

ALL: frozenset[Layout] = frozenset(POSITION_AXES)
CONVOLVED: frozenset[Layout] = frozenset({"signal", "image"})
"""Where an operation may look at all positions around one."""

TOKENS: frozenset[Layout] = frozenset({"tokens"})
"""Where none may look ahead: the host may be causal."""

Setting = int | str | bool
Settings = Mapping[str, Setting]
Shapes = dict[str, tuple[int, ...]]

MOST_DEGREE = 2
"""Of a value in what the graft reads, as that grows: what is multiplied more often leaves the range of floats, and
then zero times it is no zero."""


class Value(NamedTuple):
    """What kind of tensor an operation gives.

    Args:
        width: channels, in multiples of the genome's hidden width; 0 is as many as the graft reads.
        is_pooled: whether one position stands for all of a sample.
        degree: it grows no faster than this power of what the graft reads.
    """

    width: int
    is_pooled: bool = False
    degree: int = 1


@dataclass(frozen=True)
class Operation:
    """One kind of node.

    Args:
        arity: how many values it reads.
        gives: its value, from those and its settings; None where they do not go together.
        settings: the values that each setting may have; a node has all of them.
        layouts: where it works, by its settings.
        shapes: of its parameters, from the channels that it reads and gives, its settings and the axes of positions.
        commutes: whether the order of what it reads is nothing.
    """

    arity: int
    gives: Callable[[Sequence[Value], Settings], Value | None]
    settings: Mapping[str, tuple[Setting, ...]] = field(default_factory=dict)
    layouts: Callable[[Settings], frozenset[Layout]] = lambda settings: ALL
    shapes: Callable[[int, int, Settings, int], Shapes] = lambda reads, gives, settings, axes: {}
    commutes: bool = False


def _same(values: Sequence[Value], settings: Settings) -> Value:
    return values[0]


def _widened(values: Sequence[Value], settings: Settings) -> Value:
    return values[0]._replace(width=int(settings["width"]))


def _bounded(values: Sequence[Value], settings: Settings) -> Value:
    return values[0]._replace(degree=0)


def _activated(values: Sequence[Value], settings: Settings) -> Value | None:
    if settings["of"] in BOUNDED:
        return _bounded(values, settings)
    return _of_degree(values[0], values[0].degree * (2 if settings["of"] == "square" else 1))


def _met(values: Sequence[Value], settings: Settings) -> Value | None:
    one, other = values
    if one.width != other.width:
        return None
    return Value(one.width, one.is_pooled and other.is_pooled, max(one.degree, other.degree))


def _multiplied(values: Sequence[Value], settings: Settings) -> Value | None:
    met = _met(values, settings)
    return None if met is None else _of_degree(met, values[0].degree + values[1].degree)


def _spread(values: Sequence[Value], settings: Settings) -> Value | None:
    """Nothing that looks at positions reads what has only one."""
    return None if values[0].is_pooled else values[0]


def _attended(values: Sequence[Value], settings: Settings) -> Value | None:
    return None if values[0].is_pooled else values[0]._replace(width=int(settings["heads"]))


def _pooled(values: Sequence[Value], settings: Settings) -> Value | None:
    return None if values[0].is_pooled else values[0]._replace(is_pooled=not settings["causal"])


def _of_degree(value: Value, degree: int) -> Value | None:
    return value._replace(degree=degree) if degree <= MOST_DEGREE else None


def _by_causal(settings: Settings) -> frozenset[Layout]:
    return TOKENS if settings["causal"] else CONVOLVED


def _shifted(settings: Settings) -> frozenset[Layout]:
    if settings["axis"] == 2:
        return frozenset({"image"})
    return CONVOLVED | TOKENS if int(settings["by"]) > 0 else CONVOLVED


def _linear(reads: int, gives: int, settings: Settings, axes: int) -> Shapes:
    return {"weight": (gives, reads), "bias": (gives,)}


def _low_rank(reads: int, gives: int, settings: Settings, axes: int) -> Shapes:
    rank = max(1, min(reads, gives) // int(settings["divisor"]))
    return {"down": (rank, reads), "up": (gives, rank), "bias": (gives,)}


def _depthwise(reads: int, gives: int, settings: Settings, axes: int) -> Shapes:
    return {"weight": (reads, 1, *[int(settings["kernel"])] * axes), "bias": (reads,)}


def _attention(reads: int, gives: int, settings: Settings, axes: int) -> Shapes:
    return {"weight": (3 * gives, reads)}


def _per_channel(reads: int, gives: int, settings: Settings, axes: int) -> Shapes:
    return {"scale": (reads,), "shift": (reads,)}


WIDTHS: tuple[Setting, ...] = (2, 4, 8)
"""At least two channels, however small the hidden width: a norm over one is nothing."""

BOUNDED = frozenset({"tanh", "sigmoid", "sine"})
"""Activations that stay small, whatever they read."""

OPERATIONS: Mapping[str, Operation] = {
    "linear": Operation(1, _widened, {"width": WIDTHS}, shapes=_linear),
    "low_rank": Operation(1, _widened, {"width": WIDTHS, "divisor": (2, 4)}, shapes=_low_rank),
    "depthwise": Operation(1, _spread, {"kernel": (3, 5), "causal": (False, True)}, _by_causal, _depthwise),
    "attention": Operation(1, _attended, {"heads": WIDTHS}, lambda settings: TOKENS, _attention),
    "norm": Operation(1, _bounded),
    "scale": Operation(1, _same, shapes=_per_channel),
    "activation": Operation(
        1, _activated, {"of": ("gelu", "silu", "relu", "tanh", "sigmoid", "sine", "square", "absolute")}
    ),
    "sum": Operation(2, _met, commutes=True),
    "product": Operation(2, _multiplied, commutes=True),
    "maximum": Operation(2, _met, commutes=True),
    "shift": Operation(1, _spread, {"by": (1, 2, -1), "axis": (1, 2)}, _shifted),
    "pool": Operation(1, _pooled, {"causal": (False, True)}, _by_causal),
}
"""Every kind of node inside a genome.

================  ====================================================================================================
``linear``        a map with bias to a multiple of the hidden width; a pointwise convolution
``low_rank``      the same through fewer channels
``depthwise``     a convolution of each channel by itself; over tokens one that never looks ahead
``attention``     causal self-attention, heads as wide as the hidden width (Vaswani et al., NeurIPS 2017, section 3.2)
``norm``          over channels, to mean 0 and variance 1 (Ba et al., "Layer normalization", 2016); no parameters
``scale``         a factor and an offset for each channel, 1 and 0 at birth
``activation``    of each number
``sum`` ...       of two values of one width; where one is pooled, it meets every position of the other
``shift``         from ``by`` positions before along the last, or the last but one, axis; zeros come in
``pool``          the mean over positions, or causally over those so far
================  ====================================================================================================
"""

HEADS: Mapping[str, Operation] = {
    "linear": Operation(1, _spread, shapes=_linear),
    "scale": Operation(
        1, lambda values, settings: _spread(values, settings) if not values[0].width else None, shapes=_per_channel
    ),
    "gate": Operation(1, _same, shapes=_linear),
}
"""How a genome ends: with parameters that are zero at birth, so that the graft is the exact identity.

``linear`` maps to the channels that the graft writes. The others write as many as they read: ``scale`` has a factor for
each channel, ``gate`` multiplies what the graft reads by ``tanh`` of a linear map, over all positions alike where that
is pooled.
"""

KEEPS_WIDTH = frozenset({"scale", "gate"})
