"""Boundaries as arrays of fixed shape, and arrays as what the network reads."""

# N boundaries, R features of the run, P places, G features of a place, A actions, H features of an action

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation
from esper.tamiyo.learned.actions import Action
from esper.tamiyo.learned.network import Padded
from esper.tamiyo.learned.tokens import names, tokens

PLACES, MOST = 32, 128
"""Places and actions of a boundary. Drawn tasks have up to 28 places; of more, some are left out, evenly."""

Array = np.ndarray[Any, np.dtype[np.float32]]
Arrays = dict[str, Array]
"""A boundary, float32, by the names of :class:`~esper.tamiyo.learned.network.Padded`."""

One = TypeVar("One")


class Offer(NamedTuple):
    """A boundary as it is shown.

    Args:
        arrays: what there is to see.
        kept: of every action that is shown, its index among all that are legal.
    """

    arrays: Arrays
    kept: list[int]


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the arrays: ``run [R]``, ``places [P, G]``, ``is_place [P]``, ``actions [A, H]``, ``is_action [A]`` and
    ``place_of [A]``, the index of each action's place."""
    known = names()
    return {
        "run": (len(known.run),),
        "places": (PLACES, len(known.place)),
        "is_place": (PLACES,),
        "actions": (MOST, len(known.action)),
        "is_action": (MOST,),
        "place_of": (MOST,),
    }


def nothing() -> Arrays:
    """A boundary at which nothing can be done, or none at all."""
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes().items()}


def offer(seen: Observation, config: GrowthConfig, actions: Sequence[Action]) -> Offer:
    """A boundary with at most :data:`MOST` of its actions and :data:`PLACES` of its places.

    Args:
        seen: the boundary.
        config: of the run.
        actions: all that are legal.
    """
    open_places = _evenly(list(dict.fromkeys(one.place.layer_id for one in actions)), PLACES)
    kept = _evenly([i for i, one in enumerate(actions) if one.place.layer_id in open_places], MOST)
    read = tokens(seen, config, [actions[i] for i in kept])
    closed = [i for i in range(len(read.places)) if i not in read.place_of]
    shown = sorted([*set(read.place_of), *_evenly(closed, PLACES - len(set(read.place_of)))])
    arrays = nothing()
    arrays["run"][:] = read.run
    arrays["places"][: len(shown)] = [read.places[i] for i in shown]
    arrays["is_place"][: len(shown)] = 1
    if kept:
        arrays["actions"][: len(kept)] = read.actions
        arrays["is_action"][: len(kept)] = 1
        arrays["place_of"][: len(kept)] = [shown.index(i) for i in read.place_of]
    return Offer(arrays, kept)


def padded(boundaries: Sequence[Mapping[str, Array]]) -> Padded:
    """What the network reads of boundaries ``[N]``, at least one: without the padding that all of them have."""
    run, places, is_place, actions, is_action, place_of = (
        torch.from_numpy(np.stack([one[name] for one in boundaries])) for name in Padded._fields
    )
    most_places, most_actions = (max(1, int(one.sum(1).max())) for one in (is_place, is_action))
    return Padded(
        run,
        places[:, :most_places],
        is_place[:, :most_places] > 0,
        actions[:, :most_actions],
        is_action[:, :most_actions] > 0,
        place_of[:, :most_actions].long(),
    )


def _evenly(things: list[One], most: int) -> list[One]:
    """At most so many of them, evenly far apart."""
    return things if len(things) <= most else [things[i * len(things) // most] for i in range(most)]
