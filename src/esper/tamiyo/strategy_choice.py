"""How to blend in: the grafting strategy that the conditions at a place ask for."""

from esper.contracts.config import GrowthConfig
from esper.contracts.reports import PlaceReport

NOISY = 1.0
"""Gradient norms are noisy if they scatter from step to step by more than their mean."""


def choose_strategy(place: PlaceReport, config: GrowthConfig) -> str:
    """Name of a grafting strategy: the configured one; else by conditions.

    ``drift_controlled`` where the host still moves, since a graft that is blended in learns what is about to change;
    ``grad_norm_gated`` where gradients are noisy, to sit out the outliers; else ``fixed_ramp``.
    """
    if config.strategy is not None:
        return config.strategy
    if place.drift is not None and place.drift > config.drift_threshold:
        return "drift_controlled"
    if place.gradient_noise is not None and place.gradient_noise > NOISY:
        return "grad_norm_gated"
    return "fixed_ramp"
