"""Where: the places, and seeds of places, that a round should try."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from esper.contracts.commands import SeedId
from esper.contracts.reports import WHOLE, Piece, PlaceReport
from esper.tamiyo.health import Vitals, demand, vitals

MOST = 1e3
"""Demand and ill health count at most so many times what is usual."""

SILENT_NEED, CLOSED_NEED = MOST**2, 2 * MOST**2
"""Added to the need of a place where a chunk is silent, or all are closed: more than demand and ill health come to."""

STANDS_OUT = 2.5
"""A layer with so many times the usual need goes before larger ones. Layers of one width differ too, but by less."""

ONE_SEED_STANDS_OUT = 4.0
"""A chunk of at least three with so many times the demand of the next one grows alone. Otherwise all chunks of a layer
grow as one group, which is worth more at equal parameters."""


MOST_COLONIES = 1
"""Of one round: an arm of theirs costs more than a tenth of the run."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place to try, as one group or with a single seed.

    Attributes:
        place: the place.
        seed_id: its seed, or ``"all"``.
        need: of the place, see :func:`needs`.
    """

    place: PlaceReport
    seed_id: SeedId = "all"
    need: float = 1.0


def shortlist(
    places: Sequence[PlaceReport], length: int, among: Sequence[PlaceReport] | None = None
) -> list[Candidate]:
    """Dormant places that a round should try, the most promising one first: a path around much of the host and single
    blocks of a row; else paths around much of the host and one single layer at the most.

    A path of one hidden layer around many blocks is shallow beside them, so there is but one; around one block it keeps
    the host's depth. Paths have the order of the host parameters that they cover; need only breaks ties. Among layers,
    those whose need stands out go first, then the larger ones; need orders layers of comparable size (within a factor
    of two). What was not sensed has the usual need, so that without telemetry size alone decides.

    Args:
        places: what may be tried; those that are not dormant are left out.
        length: at most so many.
        among: the places that need is compared with, also busy ones; None for ``places``.
    """
    among = places if among is None else among
    sensed = {place.layer_id: vitals(place) for place in (*among, *places)}
    output = _output_layer(among)
    need: dict[str, float] = {}
    for is_layer in (False, True):
        group = {p.layer_id: sensed[p.layer_id] for p in (*among, *places) if (p.kind == "layer") is is_layer}
        need |= needs(group, unremarkable=output)

    free = [place for place in places if place.is_dormant]
    colonies = _colonies(free, among)
    if colonies is not None:
        return [Candidate(place) for place in colonies[: min(length, MOST_COLONIES)]]
    free = [place for place in free if place.kind != "colony"]
    paths = sorted(
        (place for place in free if place.kind != "layer"), key=lambda p: (-p.host_parameters, -need[p.layer_id])
    )
    layers = _ordered((place for place in free if place.kind == "layer"), need)
    steps = [place for place in paths if place.is_step]
    if len(steps) > 1:
        around = [place for place in paths if not place.is_step]
        paths = [*around[:1], *steps, *around[1:]]
        layers = []
    elif paths:
        layers = layers[: 1 if length > 1 else 0]
        paths = paths[: length - len(layers)]
    return [
        Candidate(place, _seed(place, sensed[place.layer_id]), need[place.layer_id])
        for place in [*paths, *layers][:length]
    ]


def _colonies(places: Sequence[PlaceReport], among: Sequence[PlaceReport]) -> list[PlaceReport] | None:
    """The colonies to try, those that widen most of the host first; None where single places are to be tried.

    Where a structure repeats itself, growing all of it at once is worth more than anything beside it. One that has
    grown is enough: the others meet the same layers.
    """
    all_of_them = [place for place in among if place.kind == "colony"]
    fit = [place for place in places if place.kind == "colony"]
    grown = {piece.module for place in all_of_them if place.grown_parameters for piece in place.pieces}
    is_repeated = any(place.layer_id != WHOLE or _has_blocks(place) for place in all_of_them)
    if not is_repeated or not (fit or grown):
        return None
    free = [place for place in fit if grown.isdisjoint(piece.module for piece in place.pieces)]
    widening = {place.layer_id: any(_widens(piece) for piece in place.pieces) for place in free}
    return sorted(free, key=lambda place: (not widening[place.layer_id], -place.host_parameters))


def _has_blocks(place: PlaceReport) -> bool:
    return not all(map(_widens, place.pieces))


def _widens(piece: Piece) -> bool:
    return piece.role not in ("beside", "copy")


def needs(sensed: Mapping[str, Vitals], unremarkable: Iterable[str] = ()) -> dict[str, float]:
    """How much places of one kind need to grow; 1 is usual.

    Demand times ill health (one minus health), each relative to the median of the other places and 1 where it is
    missing; and more where a chunk is silent or the whole place is closed. A closed place passes no gradient back, so
    that demand would not show it.

    Args:
        sensed: what was sensed, by place.
        unremarkable: places whose demand is not compared.
    """
    ignored = set(unremarkable)
    demands = {name: v.demand for name, v in sensed.items() if v.demand is not None and name not in ignored}
    illness = {name: 1 - v.health for name, v in sensed.items() if v.health is not None}
    relative_demand, relative_illness = _relative(demands), _relative(illness)
    return {
        name: relative_demand.get(name, 1.0) * relative_illness.get(name, 1.0)
        + SILENT_NEED * bool(one.silent)
        + CLOSED_NEED * one.is_closed
        for name, one in sensed.items()
    }


def _ordered(layers: Iterable[PlaceReport], need: Mapping[str, float]) -> list[PlaceReport]:
    """Layers that stand out by need; then those within a factor of two of the largest, by need; and so on."""
    outstanding: list[PlaceReport] = []
    groups: list[list[PlaceReport]] = []
    for layer in sorted(layers, key=lambda place: -place.host_parameters):
        if need[layer.layer_id] >= STANDS_OUT:
            outstanding.append(layer)
        elif groups and 2 * layer.host_parameters >= groups[-1][0].host_parameters:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return [one for group in (outstanding, *groups) for one in sorted(group, key=lambda place: -need[place.layer_id])]


def _output_layer(places: Sequence[PlaceReport]) -> list[str]:
    """The layer that writes the model's own output: it is as narrow as the task asks, which is no bottleneck."""
    wholes = [place for place in places if place.kind == "model"]
    layers = [p for p in places if p.kind == "layer" and any(p.outputs == whole.outputs for whole in wholes)]
    return [place.layer_id for place in layers[-1:]]


def _seed(place: PlaceReport, sensed: Vitals) -> SeedId:
    """The one chunk that stands out clearly, or all."""
    if place.kind != "layer" or place.num_seeds < 2 or place.seeds is None:
        return "all"
    if len(sensed.silent) == 1:
        return sensed.silent[0]
    known = sorted(
        ((value, -seed) for seed, value in enumerate(demand(place.seeds, place.num_seeds)) if value is not None),
        reverse=True,
    )
    if sensed.silent or len(known) < 3 or not known[0][0] > ONE_SEED_STANDS_OUT * known[1][0] > 0:
        return "all"
    return -known[0][1]


def _relative(values: Mapping[str, float]) -> dict[str, float]:
    """Each value relative to the median of the others, at most ``MOST`` times it; only where that is above 0."""
    ordered, result = sorted(values.values()), {}
    for name, value in values.items():
        index = bisect_left(ordered, value)
        others = [*ordered[:index], *ordered[index + 1 :]]
        usual = median(others) if others else 0.0
        if usual > 0:
            result[name] = min(value / usual, MOST)
    return result
