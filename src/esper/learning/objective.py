"""Proximal policy optimisation of what a network prefers to do at boundaries: what is made small, and one update.

The clipped objective is that of Schulman et al., "Proximal policy optimization algorithms", 2017, equation 7, in the
manner of CleanRL's single file (Huang et al., JMLR 2022); advantages are those of Schulman et al., "High-dimensional
continuous control using generalized advantage estimation", ICLR 2016, equation 16. What cannot be done has no
probability (Huang and Ontañón, "A closer look at invalid action masking in policy gradient algorithms", FLAIRS 2022).

Policy, value and judgement share their encoder, so that the judgement would drift if only its head were left alone.
Instead it is held: a loss, the anchor, keeps what is judged of the boundaries of a rollout where it was before. The
learned policy needs that judgement to know when it is unsure, and to say why.
"""

# N boundaries, A actions

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from esper.learning.arrays import padded
from esper.learning.ppo_settings import Settings
from esper.learning.rollouts import Trajectory
from esper.learning.supervised import SCALE
from esper.tamiyo.learned.network import STOP, WAIT, Judged, Padded, TamiyoNetwork


class Batch(NamedTuple):
    """What is learned from: ``[N]`` boundaries.

    Args:
        seen: the boundaries.
        choice: int64 ``[N]``, index in ``[2 + A]``.
        log_probability: ``[N]``, of the choice, when it was made.
        value: ``[N]``, what was expected then.
        advantage: ``[N]``, by how much what came was better than what was expected.
        return_: ``[N]``, what was to be expected.
    """

    seen: Padded
    choice: Tensor
    log_probability: Tensor
    value: Tensor
    advantage: Tensor
    return_: Tensor

    @classmethod
    def of(cls, played: Sequence[Trajectory], settings: Settings) -> "Batch | None":
        """That of episodes; None where nothing was chosen. Those with a fault are left out."""
        whole = [one for one in played if one.fault is None and one.steps]
        if not whole:
            return None
        steps = [step for one in whole for step in one.steps]
        value = torch.tensor([step.value for step in steps])
        advantage = torch.cat(
            [
                advantages([step.value for step in one.steps], one.saved, settings.discount, settings.trace)
                for one in whole
            ]
        )
        return cls(
            padded([step.seen for step in steps]),
            torch.tensor([step.choice for step in steps]),
            torch.tensor([step.log_probability for step in steps]),
            value,
            advantage,
            advantage + value,
        )

    def rows(self, index: Tensor) -> "Batch":
        """Some of them."""
        return Batch(self.seen.rows(index), *(part[index] for part in self[1:]))


class Losses(NamedTuple):
    """Parts of the loss, each a mean over boundaries and without its weight, by their names in
    :data:`~esper.learning.ppo_settings.METRICS`."""

    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    kl_to_first: Tensor
    anchor: Tensor

    def total(self, settings: Settings) -> Tensor:
        """What is made small."""
        held = settings.kl * self.kl_to_first + settings.anchor * self.anchor
        return self.policy_loss + settings.value * self.value_loss - settings.entropy * self.entropy + held


def advantages(values: Sequence[float], reward: float, discount: float, trace: float) -> Tensor:
    """Generalised advantages of the boundaries of one episode, whose reward comes at its end: ``[N]``."""
    found = torch.zeros(len(values))
    later, following = 0.0, 0.0
    for index in range(len(values) - 1, -1, -1):
        gained = reward if index == len(values) - 1 else 0.0
        later = gained + discount * following - values[index] + discount * trace * later
        found[index], following = later, values[index]
    return found


def losses(judged: Judged, first: Judged, batch: Batch, advantage: Tensor, clip: float) -> tuple[Losses, Tensor]:
    """Parts of the loss, and the logarithm of how far the probability of each choice has moved, ``[N]``.

    Args:
        judged: by the network that learns.
        first: by the network that it began as.
        batch: the boundaries.
        advantage: ``[N]``, standardised.
        clip: of the ratio of probabilities.
    """
    moved = judged.choice.gather(1, batch.choice[:, None])[:, 0] - batch.log_probability
    ratio = moved.exp()
    gained = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    is_there = judged.choice > -torch.inf
    chance, log_chance = judged.choice.exp(), judged.choice.masked_fill(~is_there, 0)
    log_first = first.choice.masked_fill(~is_there, 0)
    parts = Losses(
        policy_loss=-gained.mean(),
        value_loss=F.huber_loss(judged.value / SCALE, batch.return_ / SCALE),
        entropy=-(chance * log_chance).sum(1).mean(),
        kl_to_first=(chance * (log_chance - log_first)).sum(1).mean(),
        anchor=drift(judged, first, batch.seen.is_action),
    )
    return parts, moved


def drift(judged: Judged, first: Judged, is_action: Tensor) -> Tensor:
    """How far a judgement has moved: mean square over actions, of logits and of shares in units of 0.05."""
    apart = [(judged.adopt - first.adopt).square()]
    for one, other in ((judged.adopted, first.adopted), (judged.lost, first.lost), (judged.spread, first.spread)):
        apart.append(((one - other) / SCALE).square())
    return torch.stack(apart).mean(0)[is_action].mean()


def improve(
    network: TamiyoNetwork,
    first: TamiyoNetwork,
    optimizer: Optimizer,
    batch: Batch,
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, float]:
    """One update.

    Args:
        network: learns.
        first: what it began as.
        optimizer: of its parameters.
        batch: what its choices have led to.
        settings: how.
        generator: deals boundaries to steps.

    Returns:
        What is told of the losses; see :data:`~esper.learning.ppo_settings.METRICS`.
    """
    with torch.no_grad():
        before = first(batch.seen)
    advantage = batch.advantage - batch.advantage.mean()
    advantage = advantage / (advantage.square().mean().sqrt() + 1e-8)
    told: dict[str, float] = {}
    for epoch in range(settings.epochs):
        steps = []
        for rows in torch.randperm(len(batch.choice), generator=generator).split(settings.batch):
            known = Judged(*(part[rows] for part in before))
            part = batch.rows(rows)
            parts, moved = losses(network(part.seen), known, part, advantage[rows], settings.clip)
            optimizer.zero_grad()
            parts.total(settings).backward()
            norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.most_gradient)
            optimizer.step()
            steps.append(_measured(parts, moved.detach(), norm, settings.clip))
        told = {name: sum(one[name] for one in steps) / len(steps) for name in steps[0]} | {"epochs": epoch + 1.0}
        if told["step_kl"] > settings.most_step_kl:
            break
    return told | {"explained_variance": explained_variance(batch.value, batch.return_)}


def _measured(parts: Losses, moved: Tensor, norm: Tensor, clip: float) -> dict[str, float]:
    """Of one step; the divergence as in Schulman, "Approximating KL divergence", 2020: its third estimate."""
    ratio = moved.exp()
    return {
        **{name: float(value.detach()) for name, value in parts._asdict().items()},
        "step_kl": float((ratio - 1 - moved).mean()),
        "clip_share": float(((ratio - 1).abs() > clip).float().mean()),
        "gradient": float(norm),
    }


def explained_variance(value: Tensor, return_: Tensor) -> float:
    """Share of the variance of returns that goes when values are taken off; 0 where returns are all alike."""
    variance = float(return_.var(correction=0))
    return 0.0 if variance == 0 else 1 - float((return_ - value).var(correction=0)) / variance


def outcomes(played: Sequence[Trajectory]) -> dict[str, float]:
    """What is told of episodes; see :data:`~esper.learning.ppo_settings.METRICS`."""
    whole = [one for one in played if one.fault is None]
    choices = [step.choice for one in whole for step in one.steps]
    tried = sum(one.tried for one in whole)
    count, chosen = max(1, len(whole)), max(1, len(choices))
    return {
        "episodes": len(whole),
        "faults": len(played) - len(whole),
        "boundaries": len(choices),
        "reward": sum(one.saved for one in whole) / count,
        "flops": sum(one.flops for one in whole) / count,
        "waited": choices.count(WAIT) / chosen,
        "stopped": choices.count(STOP) / chosen,
        "tried": tried / count,
        "adopted": sum(one.adopted for one in whole) / max(1, tried),
    }
