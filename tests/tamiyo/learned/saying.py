"""Weights that say the same of every action."""

from pathlib import Path

import torch

from esper.tamiyo.learned import policy, weights
from esper.tamiyo.learned.network import Padded, Shape, TamiyoNetwork
from esper.tamiyo.learned.tokens import Tokens

HEADS = {"adopt": 0, "adopted": 1, "lost": 2, "spread": 3}


def saved(
    path: Path, known: Tokens, chooses_by: str = "judgement", value: float = 0.0, reach: float = 0.0, **heads: float
) -> Path:
    """Such weights in a file.

    Args:
        path: of the file.
        known: the boundary that they have learned from.
        chooses_by: as of :class:`Shape`.
        value: what waiting is worth.
        reach: deviations beyond ``known`` within which features are not strange.
        heads: what is said of an action.
    """
    torch.manual_seed(0)
    network = TamiyoNetwork(Shape(width=16, heads=2, layers=1, chooses_by=chooses_by))
    network.standardise(Padded.of([known]))
    for reader in (network.run, network.place, network.action):
        reader.least -= reach
        reader.most += reach
    network.heads.bias.data[HEADS["spread"]] = -5.0
    for name, given in heads.items():
        network.heads.bias.data[HEADS[name]] = given
    network.of_run[-1].bias.data[2] = value
    weights.save(network, path, {})
    policy._read.cache_clear()
    return path
