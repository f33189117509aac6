"""What flags change in how a run may grow."""

from collections.abc import Mapping
from dataclasses import replace

from esper.contracts.config import GrowthConfig
from esper.contracts.flags import Flags


def applied(flags: Flags, config: GrowthConfig) -> GrowthConfig:
    """The configuration as flags leave it, for :func:`esper.wrap`; the session is given the flags themselves.

    Args:
        flags: of the model.
        config: as it was asked for.

    Returns:
        The same, but for one seed a layer without ``chunked_architecture``, and ``fixed_ramp`` without
        ``grafting_strategies``.
    """
    if not flags.is_on("chunked_architecture"):
        layers = config.layers
        if isinstance(layers, Mapping):
            layers = dict.fromkeys(layers, 1)
        config = replace(config, seeds_per_layer=1, layers=layers)
    if not flags.is_on("grafting_strategies"):
        config = replace(config, strategy="fixed_ramp")
    return config
