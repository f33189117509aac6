"""Why the heuristic controller decided as it did, with all that it went by. For debugging: it computes it once more."""

from typing import Any

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import Observation, PlaceReport
from esper.tamiyo.health import vitals
from esper.tamiyo.proposal import num_candidates, why_left_out
from esper.tamiyo.shortlist import Candidate, shortlist
from esper.tamiyo.timing import has_stalled, obstacle, overfits, reason_to_grow


def explain(seen: Observation, config: GrowthConfig) -> dict[str, Any]:
    """When and where, for the log: plain values.

    Args:
        seen: what the controller saw.
        config: its configuration.

    Returns:
        ``when``: whether a round may begin and should, and what decided that. ``where``: of every place what it needs
        and what was sensed, its ``rank`` in the shortlist from 1, and, where it is not in it, ``left_out``: why.
    """
    return {"when": _when(seen, config), "where": _where(seen, config)}


def _when(seen: Observation, config: GrowthConfig) -> dict[str, Any]:
    recent = -1 - config.patience
    return {
        "obstacle": obstacle(seen, config),
        "overfits": overfits(seen.train_losses, seen.select_losses, config.patience),
        "has_stalled": has_stalled(seen.select_losses, config.patience, config.min_delta),
        "reason": reason_to_grow(seen, config),
        "share": seen.step / seen.planned_steps,
        "train_losses": seen.train_losses[recent:],
        "select_losses": seen.select_losses[recent:],
        "patience": config.patience,
        "min_delta": config.min_delta,
        "rounds_done": seen.rounds_done,
        "active": seen.active,
    }


def _where(seen: Observation, config: GrowthConfig) -> list[dict[str, Any]]:
    why = {place.layer_id: why_left_out(place, seen, config) for place in seen.places}
    fit = [place for place in seen.places if why[place.layer_id] is None]
    length = num_candidates(seen, config)
    listed = shortlist(fit, length, among=seen.places)
    ranks = {one.place.layer_id: rank for rank, one in enumerate(listed, start=1)}
    by_place = {one.place.layer_id: one for one in listed}
    told = []
    for place in seen.places:
        behind = None if place.layer_id in ranks else f"not among the {len(listed)} of the shortlist, at most {length}"
        told.append(
            {
                "layer_id": place.layer_id,
                "kind": place.kind,
                "rank": ranks.get(place.layer_id),
                "left_out": why[place.layer_id] or behind,
                **_sensed(place, by_place.get(place.layer_id)),
            }
        )
    return told


def _sensed(place: PlaceReport, candidate: Candidate | None) -> dict[str, Any]:
    found = {} if candidate is None else {"seed_id": candidate.seed_id, "need": candidate.need}
    return found | vitals(place)._asdict() | {"host_parameters": place.host_parameters}
