"""How a network learns by reinforcement, and what is told of that."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from esper.contracts.config import GrowthConfig
from esper.contracts.errors import ConfigError
from esper.learning.generated import Practice, draw

METRICS = {
    "episodes": "episodes that were played to their end",
    "faults": "episodes that could not go on, or whose process failed; nothing is learned from them",
    "boundaries": "choices that were made",
    "reward": "mean share of the final test loss that an episode has saved at equal total FLOPs",
    "flops": "mean FLOPs of an episode with all that was tried, relative to the run that never grew",
    "waited": "share of the choices that wait",
    "stopped": "share of the choices that stop",
    "tried": "mean number of grafts that an episode has tried",
    "adopted": "share of the grafts tried that beat their twins",
    "policy_loss": "the clipped objective, with its sign turned; it is near 0 by construction",
    "value_loss": "Huber loss of the expected reward, in units of 0.05 of the loss",
    "entropy": "mean entropy of the choice, in nats; 0 is a choice without doubt",
    "kl_to_first": "mean KL divergence of the choice from that of the policy it began with, in nats",
    "anchor": "how far the judgement has moved from what it was, mean square in its own units",
    "step_kl": "estimate of the KL divergence between this update's policy and the one that played, in nats",
    "clip_share": "share of the choices whose probability has changed by more than the clip",
    "explained_variance": "share of the variance of returns that the values foresaw; below 0 is worse than a constant",
    "gradient": "mean norm of the gradient before it is clipped",
    "epochs": "passes over the rollouts, fewer than set where the policy had moved far enough",
}
"""What is told of an update, and what it means."""


@dataclass(frozen=True)
class Settings:
    """How a network learns.

    Args:
        config: how runs may grow; its seed is not used.
        make_practice: the task of a seed.
        tasks: of an update.
        episodes: on each task; the host alone is measured once for all of them.
        lr: of Adam.
        discount: of rewards by boundaries; 1 counts a late one fully.
        trace: lambda of the advantages; 1 looks at the end alone, 0 one boundary ahead.
        clip: change of a choice's probability beyond which nothing more is gained.
        epochs: passes over the rollouts of an update.
        batch: boundaries of a step.
        entropy: weight of the bonus for doubt.
        value: weight of the value loss.
        kl: weight of the divergence from the policy it began with.
        anchor: weight of what holds the judgement.
        most_step_kl: nats beyond which an update ends after the pass.
        most_gradient: norm to which gradients are clipped.
        seed: of all that is chosen.
        tensorboard: whether to write for TensorBoard as well.

    Raises:
        ConfigError: if a number cannot work.
    """

    config: GrowthConfig = field(default_factory=GrowthConfig)
    make_practice: Callable[[int], Practice] = draw
    tasks: int = 16
    episodes: int = 4
    lr: float = 1e-4
    discount: float = 1.0
    trace: float = 0.95
    clip: float = 0.2
    epochs: int = 4
    batch: int = 64
    entropy: float = 0.01
    value: float = 0.5
    kl: float = 0.05
    anchor: float = 0.5
    most_step_kl: float = 0.02
    most_gradient: float = 0.5
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("tasks", "episodes", "epochs", "batch", "lr", "clip", "most_step_kl", "most_gradient"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("entropy", "value", "kl", "anchor", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be below 0, but is {getattr(self, name)}.")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        """As plain values; the function that makes tasks by its name."""
        make = self.make_practice
        return {**asdict(self), "make_practice": f"{make.__module__}.{make.__qualname__}"}
