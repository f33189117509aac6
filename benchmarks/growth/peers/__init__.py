"""Neighbours, through their public interfaces: each is given what the grown run of the same seed had."""

from collections.abc import Callable
from importlib.util import find_spec

from torch import nn

from benchmarks.growth.peers.goal import Goal
from benchmarks.growth.peers.gromo import gromo
from benchmarks.growth.peers.lora import lora
from benchmarks.growth.peers.perforated import perforated
from esper.evaluation.controls import Setting
from esper.evaluation.learning_curve import LearningCurve
from esper.evaluation.training import Recipe
from esper.tasks.task import Task

__all__ = ["PEERS", "Goal", "missing"]

Peer = Callable[[Task, Goal, Setting, Recipe, LearningCurve], tuple[nn.Module, int]]

PEERS: dict[str, Peer] = {"lora": lora, "gromo": gromo, "perforated": perforated}
"""Trains one run by a recipe and gives the model and its training FLOPs, as ``esper.evaluation.controls.search`` asks.

First weights come from the global random state. What a package cannot take is a ConfigError.
"""

PACKAGES = {"lora": "peft", "gromo": "gromo", "perforated": "perforatedai"}
FROM_EXTRA = "pip install 'esper-morphogenetic[peers]'"
# perforatedai names torchvision without importing it, and that breaks peft where torch is a build for CPUs.
ALONE = "pip install --no-deps perforatedai"


def missing(name: str) -> str | None:
    """Why the row of a peer cannot be computed here, or None. Imports nothing."""
    package = PACKAGES[name]
    if find_spec(package) is not None:
        return None
    how = FROM_EXTRA if name != "perforated" else f"{FROM_EXTRA} and then {ALONE}"
    return f"{package} is not installed: {how}."
