"""What the wrapped model needs to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esper.contracts.settings.rules import (
    ABOVE_0,
    AXES,
    FIELD_NAMES,
    PATTERNS,
    PATTERNS_OR_COUNTS,
    WHOLE,
    WHOLE_FROM_0,
    WHOLE_FROM_1,
    or_none,
    setting,
)


@dataclass(frozen=True)
class PlaceSettings:
    """Where seeds sit, and what they sense. Read by Kasmina.

    Args:
        layers: places that carry seeds: fnmatch patterns on dotted module names, ``"first:last"`` for a span, ``""``
            for the whole model; a mapping also gives the number of seeds per place. None chooses by itself: layers,
            blocks, halves of chains, the whole model.
        exclude: places that carry no seeds, whoever chose them: patterns on their names as in ``layers``, spans and the
            whole model (``""``) among them. Places that contain an excluded module stay; exclude those too, if a graft
            shall not run beside them either.
        colonies: places that lie at several modules at once, by patterns on their names, such as ``"blocks.*.mlp"``;
            ``"*"`` alone names all, and ``[]`` none. None takes all that an example shows.
        seeds_per_layer: seeds of each layer, capped at its channels. Blocks, spans and the model have one.
        axis: channel axis (1 or -1) of places whose modules do not tell, by pattern.
        output_fields: which field of a mapping or dataclass output grafts write, by pattern; else the first
            float tensor of two axes or more.
        telemetry_rows: vectors of channels that each place looks at in one of eight training forward passes; 0 senses
            nothing.
        drift_threshold: ``drift_controlled`` pauses while host weights are further than this from their average,
            relative to its norm.
        seed: seeds the grafts' own random streams and the split of the held-out samples. The global random state is
            never touched.
    """

    layers: Sequence[str] | Mapping[str, int] | None = setting(None, PATTERNS_OR_COUNTS)
    exclude: Sequence[str] = setting((), PATTERNS)
    colonies: Sequence[str] | None = setting(None, or_none(PATTERNS))
    seeds_per_layer: int = setting(64, WHOLE_FROM_1)
    axis: Mapping[str, int] | None = setting(None, AXES)
    output_fields: Mapping[str, str] | None = setting(None, FIELD_NAMES)
    telemetry_rows: int = setting(24, WHOLE_FROM_0)
    drift_threshold: float = setting(0.12, ABOVE_0)
    seed: int = setting(0, WHOLE)
