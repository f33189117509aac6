"""What the learned controller sees: numbers that mean the same in every run, whatever its size, units and names.

One vector for the run, one for each place, one for each action. Losses come as logarithms of ratios, sizes relative to
the host's, demand and ill health relative to the other places. What was not measured is 0, with a flag where that could
be taken for a value.
"""

# R features of the run, P places, G features of a place, A actions, H features of an action

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, pstdev
from typing import NamedTuple

from esper.contracts.config import GrowthConfig
from esper.contracts.lifecycle import State
from esper.contracts.reports import FieldReport, Observation, PlaceReport
from esper.tamiyo.chance import targets
from esper.tamiyo.health import vitals
from esper.tamiyo.learned.actions import Action, budgets_left, costs
from esper.tamiyo.selection import gain_of
from esper.tamiyo.shield import failures_in_a_row
from esper.tamiyo.shortlist import needs

LAGS = (1, 2, 4, 8)
"""Boundaries back over which the fall of a loss is told."""

KINDS = ("model", "span", "block", "layer", "colony")
LAYOUTS = ("features", "tokens", "signal", "image")
BLUEPRINTS = (
    *("widen", "deepen", "conv_bottleneck", "sliding_conv", "bottleneck_mlp", "affine", "depthwise_conv", "glu"),
    *("low_rank", "mini_attention", "norm_affine", "squeeze_excite"),
)
"""That are told by name; others by their costs alone."""

WIDEST = 6.0
"""A feature is never further from 0."""

LARGEST = 1e100
"""Of a loss whose noise can be told."""

Vector = dict[str, float]


class Tokens(NamedTuple):
    """What is seen, as lists of floats.

    Args:
        run: ``[R]``.
        places: ``[P, G]``.
        actions: ``[A, H]``.
        place_of: of every action, the index of its place.
    """

    run: list[float]
    places: list[list[float]]
    actions: list[list[float]]
    place_of: list[int]


@dataclass(frozen=True)
class Names:
    """Of the features of a run, a place and an action, in their order."""

    run: tuple[str, ...]
    place: tuple[str, ...]
    action: tuple[str, ...]


def tokens(seen: Observation, config: GrowthConfig, actions: Sequence[Action]) -> Tokens:
    """What there is to see at a boundary, and what may be done.

    Args:
        seen: the boundary.
        config: of the run.
        actions: as of :func:`~esper.tamiyo.learned.actions.legal_actions`.
    """
    index = {place.layer_id: number for number, place in enumerate(seen.places)}
    need = _needs(seen.places)
    return Tokens(
        _bounded(_run(seen, config)),
        [_bounded(_place(one, seen, config, need)) for one in seen.places],
        [_bounded(_action(one, seen)) for one in actions],
        [index[one.place.layer_id] for one in actions],
    )


@lru_cache
def names() -> Names:
    """What each number is called; weights are of these and no others."""
    place = PlaceReport("", "layer", (0,), False, 1, 1, (0, 1))
    seen = Observation(0, 1, 0, (), (), (place,), 0, 1, 0)
    action = tuple(_action(None, seen))
    return Names(tuple(_run(seen, GrowthConfig())), tuple(_place(place, seen, GrowthConfig(), {"": 1.0})), action)


def _run(seen: Observation, config: GrowthConfig) -> Vector:
    train, select = seen.train_losses, seen.select_losses
    parameters, count = seen.host_parameters + seen.grown_parameters, targets(seen)
    outcomes = [one.outcome for one in seen.reports]
    room, work = budgets_left(seen, config)
    planned = seen.step_flops * seen.planned_steps
    last = seen.place_of_targets
    found = {
        "done": seen.step / seen.planned_steps,
        "until_it_closes": config.grow_until - seen.step / seen.planned_steps,
        "boundaries": math.log1p(len(select)),
        "left_of_first_loss": _ratio(select[-1], select[0]) if select else 0.0,
        "gap": _ratio(select[-1], train[-1]) if select and train else 0.0,
        "gap_change": _change_of_gap(train, select),
        "noise": _noise(select),
        "further_fall": _forecast(select),
        "has_metric": float(bool(seen.select_metrics)),
        "metric": seen.select_metrics[-1] if seen.select_metrics else 0.0,
        "metric_gain": seen.select_metrics[-1] - seen.select_metrics[0] if seen.select_metrics else 0.0,
        "targets_per_parameter": 0.0 if count is None else _log(count / max(1, parameters)),
        "are_tokens": float(last is not None and last.layout == "tokens"),
        "grown": seen.grown_parameters / max(1, seen.host_parameters),
        "spent": 0.0 if not planned else seen.train_flops / planned - seen.step / seen.planned_steps,
        "rounds_left": (config.max_rounds - seen.rounds_done) / max(1, config.max_rounds),
        "kept": float(outcomes.count(State.FOSSILIZED.name)),
        "lost": float(outcomes.count(State.CULLED.name)),
        "room": min(room, 2.0),
        "work": min(work, 2.0),
        "flops_are_bound": float(config.max_train_flops is not None),
        "window": config.round_fraction,
        "places": math.log1p(len(seen.places)),
        "colonies": math.log1p(sum(one.kind == "colony" for one in seen.places)),
    }
    for lag in LAGS:
        found[f"fall_of_select_{lag}"] = _fall(select, lag)
        found[f"fall_of_train_{lag}"] = _fall(train, lag)
    return found


def _place(place: PlaceReport, seen: Observation, config: GrowthConfig, need: Mapping[str, float]) -> Vector:
    sensed = vitals(place)
    widest = max(one.outputs for one in seen.places)
    past = [one for one in seen.reports if one.layer_id == place.layer_id]
    return {
        **{f"is_{kind}": float(place.kind == kind) for kind in KINDS},
        **{f"reads_{layout}": float(place.layout == layout) for layout in LAYOUTS},
        "is_step": float(place.is_step),
        "is_dormant": float(place.is_dormant),
        "in_over_out": _log(place.inputs / max(1, place.outputs)) if place.inputs else 0.0,
        "width": _log(place.outputs / max(1, widest)),
        "positions": _log(max(1, place.positions)),
        "covers": place.host_parameters / max(1, seen.host_parameters),
        "rows": _log(max(1, place.rows) / max(1, max(one.rows for one in seen.places))),
        "grown": place.grown_parameters / max(1, seen.host_parameters),
        "pieces": math.log1p(len(place.pieces)),
        "widens": float(any(one.role not in ("beside", "copy") for one in place.pieces)),
        "is_sensed": float(sensed.health is not None),
        "health": 0.0 if sensed.health is None else sensed.health,
        "need": _log(need[place.layer_id]),
        "silent": len(sensed.silent) / max(1, place.num_seeds),
        "is_closed": float(sensed.is_closed),
        "inactive": 0.0 if place.seeds is None else _mean(place.seeds.inactive_ratio or ()),
        "correlation": 0.0 if place.seeds is None else _mean(place.seeds.mean_abs_correlation or ()),
        "gradient_noise": 0.0 if place.gradient_noise is None else min(place.gradient_noise, WIDEST),
        "drift": 0.0 if place.drift is None else place.drift,
        "failures": failures_in_a_row(place.layer_id, seen.reports) / config.max_failures,
        "tried": math.log1p(len(past)),
        "last_gain": _last_gain(past),
    }


def _action(action: Action | None, seen: Observation) -> Vector:
    """Features of an action; of None only their names count."""
    parameters, work = (1.0, 1.0) if action is None else costs(action, seen)
    blueprint = None if action is None else action.option.blueprint
    past = [one for one in seen.reports if blueprint is not None and one.blueprint == blueprint.id]
    return {
        **{name: float(blueprint is not None and blueprint.id == name) for name in BLUEPRINTS},
        "parameters": _log(max(parameters, 1e-4)),
        "work": _log(max(work, 1e-4)),
        "share": 1.0 if action is None else action.share,
        "reads_chunk": float(blueprint is not None and blueprint.reads_chunk),
        "is_known": 0.0 if blueprint is None else blueprint.confidence / 3,
        "tried": math.log1p(len(past)),
        "last_gain": _last_gain(past),
    }


def _needs(places: Sequence[PlaceReport]) -> dict[str, float]:
    """As the heuristic has them: layers among layers, the others among themselves."""
    found: dict[str, float] = {}
    for is_layer in (False, True):
        found |= needs({one.layer_id: vitals(one) for one in places if (one.kind == "layer") is is_layer})
    return found


def _last_gain(past: Sequence[FieldReport]) -> float:
    """Share of the twin's loss that the last trial of these saved; 0 where nothing was measured."""
    return next((gain for one in reversed(past) if (gain := gain_of(one)) is not None), 0.0)


def _fall(losses: Sequence[float], lag: int) -> float:
    """Logarithm by which a loss fell within so many boundaries, for each of them."""
    if len(losses) < 2:
        return 0.0
    back = min(lag, len(losses) - 1)
    return 10 * _ratio(losses[-1 - back], losses[-1]) / back


def _change_of_gap(train: Sequence[float], select: Sequence[float]) -> float:
    both = min(len(train), len(select))
    if both < 2:
        return 0.0
    back = min(4, both - 1)
    return _ratio(select[-1], train[-1]) - _ratio(select[-1 - back], train[-1 - back])


def _noise(losses: Sequence[float]) -> float:
    """How far single boundaries lie from their neighbours, relative to the loss."""
    recent = losses[-8:]
    if len(recent) < 4 or not all(abs(loss) < LARGEST for loss in recent):
        return 0.0
    bends = [a - 2 * b + c for a, b, c in zip(recent, recent[1:], recent[2:], strict=False)]
    return 10 * pstdev(bends) / max(1e-12, abs(fmean(recent)))


def _forecast(losses: Sequence[float]) -> float:
    """Logarithm of the fall that a power law through the first, middle and last boundary foresees for as many more."""
    if len(losses) < 3:
        return 0.0
    middle = losses[len(losses) // 2]
    recent, early = _ratio(middle, losses[-1]), _ratio(losses[0], middle)
    return recent if early <= 0 else min(recent, recent * max(0.0, recent) / early)


def _mean(values: Sequence[float]) -> float:
    """Of those that are finite, none further from 0 than :data:`WIDEST`; 0 of none."""
    finite = [max(-WIDEST, min(WIDEST, value)) for value in values if math.isfinite(value)]
    return fmean(finite) if finite else 0.0


def _ratio(above: float, below: float) -> float:
    """Its logarithm; 0 where there is none, as of losses below 0."""
    if not (math.isfinite(above) and math.isfinite(below)) or above <= 0 or below <= 0:
        return 0.0
    return math.log(above) - math.log(below)  # the ratio itself may be 0 or infinite


def _log(value: float) -> float:
    return math.log(value) if value > 0 and math.isfinite(value) else 0.0


def _bounded(vector: Vector) -> list[float]:
    return [max(-WIDEST, min(WIDEST, value)) if math.isfinite(value) else 0.0 for value in vector.values()]
