"""What genomes do: whether two that are written differently compute the same."""

import hashlib
import math

import torch

from esper.blueprints.blueprint import Ports
from esper.contracts.reports import Layout
from esper.karn.compiled import blueprint_of
from esper.karn.genome import Genome

CHANNELS, SAMPLES = 6, 8
POSITIONS: dict[Layout, tuple[int, ...]] = {"features": (), "tokens": (5,), "signal": (5,), "image": (4, 3)}
DIGITS = 4
"""By which what is computed must agree, relative to its deviation."""


def behaviour(genome: Genome, layout: Layout) -> str:
    """A digest of what a genome gives for drawn parameters and inputs, always the same ones.

    Genomes that agree in it are duplicates, such as an absolute value with and without a ReLU behind it. Some that
    compute the same differ in it, where they draw their parameters in another order.

    Args:
        genome: one that grows on the layout.
        layout: where.
    """
    ports = Ports(CHANNELS, CHANNELS, layout, math.prod(POSITIONS[layout]))
    blueprint, generator = blueprint_of(genome)(), torch.Generator().manual_seed(0)
    params = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * math.prod(shape[1:]) ** -0.5
        for name, shape in blueprint.shapes(ports).items()
    }
    x = torch.randn(SAMPLES, *POSITIONS[layout], CHANNELS, generator=torch.Generator().manual_seed(1)).double()
    delta = blueprint.delta(params, x)
    rounded = (delta / (delta.std() + 1e-12)).mul(10**DIGITS).round() + 0.0  # no zero with a sign
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()
