"""What ``esper bench`` measures."""

from esper.evaluation.bench import agreement, dormant, grafts, seeds, sweeps, transformer
from esper.evaluation.bench.section import Measure

SECTIONS: dict[str, Measure] = {
    "agreement": agreement.measure,
    "dormant": dormant.measure,
    "seeds": seeds.measure,
    "grafts": grafts.measure,
    "shares": grafts.measure_shares,
    "sweeps": sweeps.measure,
    "transformer": transformer.measure,
}
"""By the names that ``--only`` takes."""
