"""What ``esper bench`` measures."""

from functools import partial

from esper.evaluation.bench import agreement, dormant, grafts, seeds, sweeps, transformer
from esper.evaluation.bench.section import Measure

SECTIONS: dict[str, Measure] = {
    "agreement": agreement.measure,
    "dormant": dormant.measure,
    "seeds": seeds.measure,
    "grafts": grafts.measure,
    "shares": grafts.measure_shares,
    "sweeps": sweeps.measure,
    "step": partial(transformer.measure, transformer.EAGER),
    "compiled-step": partial(transformer.measure, transformer.COMPILED),
    "graphed-step": partial(transformer.measure, transformer.GRAPHED),
    "compiled-graphed-step": partial(transformer.measure, transformer.COMPILED_GRAPHED),
}
"""By the names that ``--only`` takes."""
