"""What ``esper bench`` measures."""

from esper.evaluation.bench import dormant, transformer
from esper.evaluation.bench.section import Measure

SECTIONS: dict[str, Measure] = {"dormant": dormant.measure, "transformer": transformer.measure}
"""By the names that ``--only`` takes."""
