"""Learning from what became of single actions: chance, gain and cost of each, and what waiting is worth.

Five networks are trained, each on four fifths of the tasks, and say of the other fifth what they expect: that tells how
much can be predicted, and gives what waiting is worth without anything that was learned by heart.
"""

# N boundaries, A actions, T tries

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from esper.contracts.errors import DataError
from esper.learning.examples import Examples
from esper.tamiyo.learned.network import WAIT, Judged, Padded, Shape, TamiyoNetwork
from esper.tamiyo.learned.tokens import names

FOLDS = 5
SCALE = 0.05
"""A share of the loss; errors count in such units, beyond it only in proportion."""

CAUTIONS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Deviations that may be taken off what is expected of an action."""

CHOICES = 8
"""Tries of a step for each boundary of it at which to choose among all actions."""

CURVES = ("fall_", "left_of_first_loss", "gap", "noise", "further_fall", "metric")
"""How the features of a run begin that tell of its learning curves."""

TELLING = 0.002
"""Deviation of what the tries of a task have saved below which their ranks are not compared."""

Tell = Callable[[str, int, dict[str, float]], None]
"""Called with the name of a phase, a step of it, and what was measured there."""


@dataclass(frozen=True)
class Settings:
    """How a network learns.

    Args:
        shape: of it.
        steps: of training.
        batch: tries of a step.
        lr: peak learning rate.
        weight_decay: of AdamW.
        blur: deviation of the noise on standardised features.
        seed: of first weights and batches.
        without_curves: whether it is blind to :data:`CURVES`, to see what those are worth.
    """

    shape: Shape = field(default_factory=Shape)
    steps: int = 800
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.1
    blur: float = 0.1
    seed: int = 0
    without_curves: bool = False


class Worth(NamedTuple):
    """What boundaries are worth.

    Args:
        best: int64 ``[N]``, index of the action of which most is expected; -1 where there is none.
        acting: ``[N]``, what is expected of it, less what it is unsure by.
        waiting: ``[N]``, the most that is expected at a later boundary of the same run; at least 0.
    """

    best: Tensor
    acting: Tensor
    waiting: Tensor

    @property
    def is_time(self) -> Tensor:
        """bool ``[N]``, whether to act."""
        return (self.best >= 0) & (self.acting > 0) & (self.acting >= self.waiting)


def judgement_loss(said: Judged, is_adopted: Tensor, saved: Tensor) -> Tensor:
    """How wrong judgements of single actions are: mean over tries.

    Args:
        said: of each try alone, ``[T, 1]``.
        is_adopted: bool ``[T]``.
        saved: ``[T]``.

    Returns:
        Binary cross entropy of being adopted; Huber losses of what is saved, each where it holds and of the
        expectation over both; and the Gaussian negative log-likelihood of the spread around that.
    """
    adopt, adopted, lost, gain, spread = (
        part[:, 0] for part in (said.adopt, said.adopted, said.lost, said.gain, said.spread)
    )
    right = F.binary_cross_entropy_with_logits(adopt, is_adopted.float())
    where = torch.where(is_adopted, adopted, lost)
    off = [F.huber_loss(one / SCALE, saved / SCALE) for one in (where, gain)]
    sure = F.gaussian_nll_loss(gain.detach(), saved, spread.square())
    return right + off[0] + 0.5 * off[1] + 0.1 * sure


def learn(
    data: Examples, settings: Settings, worth: Worth | None = None, tell: Tell | None = None, phase: str = "judgement"
) -> TamiyoNetwork:
    """A network that has learned from examples.

    Args:
        data: to learn from.
        settings: how.
        worth: of its boundaries: also learns what waiting is worth and to choose; None learns to judge alone.
        tell: hears of the losses.
        phase: name of what is told.
    """
    network, generator = _begun(data.seen, settings)
    optimizer, schedule = _optimizer(network, settings)
    mean = copy.deepcopy(network)
    for step in range(settings.steps):
        tries = torch.randint(len(data.saved), (settings.batch,), generator=generator)
        seen = data.seen.rows(data.boundary[tries]).with_one_action(data.action[tries])
        said = network(blurred(network, seen, settings.blur, generator))
        loss = judgement_loss(said, data.is_adopted[tries], data.saved[tries])
        if worth is not None:
            rows = torch.randint(len(data.order), (settings.batch // CHOICES,), generator=generator)
            loss = loss + choice_loss(
                network(blurred(network, data.seen.rows(rows), settings.blur, generator)), worth, rows
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _blind(network, settings)
        _average(mean, network, step)
        if tell is not None and (step + 1) % 50 == 0:
            tell(phase, step + 1, {"loss": float(loss.detach())})
    return mean.eval()


def choice_loss(judged: Judged, worth: Worth, rows: Tensor) -> Tensor:
    """How far the policy is from acting where it is time, and the value from what waiting is worth."""
    wanted = torch.where(worth.is_time[rows], worth.best[rows] + 2, WAIT)
    value = F.huber_loss(judged.value / SCALE, worth.waiting[rows] / SCALE)
    return 0.3 * F.nll_loss(judged.choice, wanted) + value


def imitate(data: Examples, settings: Settings, tell: Tell | None = None) -> TamiyoNetwork:
    """A network whose policy does what the heuristic does; it judges nothing."""
    asked = data.heuristic > -2
    seen, wanted = data.seen.rows(asked.nonzero()[:, 0]), data.heuristic[asked]
    network, generator = _begun(seen, settings)
    optimizer, schedule = _optimizer(network, settings)
    for step in range(settings.steps):
        rows = torch.randint(len(wanted), (settings.batch,), generator=generator)
        said = network(blurred(network, seen.rows(rows), settings.blur, generator))
        loss = F.nll_loss(said.choice, torch.where(wanted[rows] < 0, WAIT, wanted[rows] + 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        _blind(network, settings)
        if tell is not None and (step + 1) % 50 == 0:
            tell("imitation", step + 1, {"loss": float(loss.detach())})
    return network.eval()


def _begun(seen: Padded, settings: Settings) -> tuple[TamiyoNetwork, torch.Generator]:
    """A network with first weights that knows the ranges of what there is to see, and a stream of random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = TamiyoNetwork(settings.shape)
    network.standardise(seen)
    _blind(network, settings)
    return network, torch.Generator().manual_seed(settings.seed)


def _optimizer(network: TamiyoNetwork, settings: Settings) -> tuple[AdamW, OneCycleLR]:
    optimizer = AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return optimizer, OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)


@torch.no_grad()
def _blind(network: TamiyoNetwork, settings: Settings) -> None:
    if settings.without_curves:
        columns = [index for index, name in enumerate(names().run) if name.startswith(CURVES)]
        network.run.linear.weight[:, columns] = 0


def blurred(network: TamiyoNetwork, seen: Padded, blur: float, generator: torch.Generator) -> Padded:
    """Boundaries whose features have noise, so that none is learned by heart."""

    def noisy(vectors: Tensor, deviation: Tensor) -> Tensor:
        return vectors + blur * deviation * torch.randn(vectors.shape, generator=generator)

    return seen._replace(
        run=noisy(seen.run, network.run.deviation),
        places=noisy(seen.places, network.place.deviation),
        actions=noisy(seen.actions, network.action.deviation),
    )


@torch.no_grad()
def judged(network: TamiyoNetwork, seen: Padded, at_once: int = 512) -> Judged:
    """What a network says of many boundaries."""
    parts = [network(seen.rows(rows)) for rows in torch.arange(len(seen.run)).split(at_once)]
    return Judged(*(torch.cat(column) for column in zip(*parts, strict=True)))


def worth_of(said: Judged, data: Examples, caution: float) -> Worth:
    """Backward induction over the boundaries of each run that never grew.

    Args:
        said: of all boundaries, by networks that did not learn from them.
        data: the boundaries.
        caution: deviations that are taken off what is expected.
    """
    score = (said.gain - caution * said.spread).masked_fill(~data.seen.is_action, -torch.inf)
    acting, best = score.max(1)
    acting, best = acting.clamp(min=-1), torch.where(data.seen.is_action.any(1), best, -1)
    waiting = torch.zeros(len(acting))
    for row in range(len(acting) - 2, -1, -1):
        goes_on = data.task[row] == data.task[row + 1] and 0 <= data.order[row] < data.order[row + 1]
        if goes_on:
            waiting[row] = max(0.0, float(acting[row + 1]), float(waiting[row + 1]))
    return Worth(best, acting, waiting)


def crossed(data: Examples, settings: Settings, tell: Tell | None = None) -> Judged:
    """What networks say of all boundaries that did not learn from their tasks.

    Raises:
        DataError: if there are too few tasks.
    """
    tasks, said = int(data.task.max()) + 1, None
    if (known := len(data.task.unique())) < 2 * FOLDS:
        raise DataError(
            f"Something was tried in {known} tasks, and {2 * FOLDS} tasks are needed at least. Collect more."
        )
    fold_of = torch.randperm(tasks, generator=torch.Generator().manual_seed(settings.seed)) % FOLDS
    for fold in range(FOLDS):
        network = learn(data.of(fold_of != fold), settings, tell=tell, phase=f"fold {fold + 1}")
        rows = (fold_of == fold)[data.task].nonzero()[:, 0]
        own = judged(network, data.seen.rows(rows))
        if said is None:
            said = Judged(*(part.new_zeros(len(data.task), *part.shape[1:]) for part in own))
        for whole, part in zip(said, own, strict=True):
            whole[rows] = part
    assert said is not None
    return said


class Picked(NamedTuple):
    """What comes of taking, in each task, that of its tries of which most is expected.

    Args:
        saved: mean over tasks; nothing is saved where nothing is taken.
        error: standard error of that.
        share: of tasks, in which something is taken.
    """

    saved: float
    error: float
    share: float


def picked(said: Judged, data: Examples, caution: float) -> Picked:
    """What networks would have done that did not learn from these tasks, and what became of it.

    Args:
        said: by them, of all boundaries.
        data: the tasks.
        caution: deviations that are taken off what is expected; only what is above 0 then is taken.
    """
    gain, spread = _of_tries(said.gain, data), _of_tries(said.spread, data)
    score, task = gain - caution * spread, data.task[data.boundary]
    taken = [torch.where(task == one, score, -torch.inf).argmax() for one in task.unique()]
    best = torch.stack(taken)
    saved = torch.where(score[best] > 0, data.saved[best], 0.0)
    return Picked(float(saved.mean()), float(saved.std()) / len(saved) ** 0.5, float((score[best] > 0).float().mean()))


def caution_of(said: Judged, data: Examples) -> float:
    """That of :data:`CAUTIONS` with which most is saved in tasks that the networks did not learn from."""
    return max(CAUTIONS, key=lambda caution: (picked(said, data, caution).saved, caution))


def predictability(said: Judged, data: Examples, caution: float) -> dict[str, float]:
    """How much of what became of actions was foreseen, by networks that did not learn from their tasks.

    Returns:
        ``r2`` of what is saved, clipped as in training; ``rank`` correlation of the tries of one boundary's task, a
        mean over tasks; ``auc`` of being adopted; ``chosen``, mean saved by the tries of which something is expected,
        and ``share``, how many those are; ``all``, mean of all; :func:`picked`.
    """
    gain, spread, adopt = (_of_tries(part, data) for part in (said.gain, said.spread, said.adopt))
    error, variance = (data.saved - gain).square().mean(), data.saved.var(correction=0)
    task = data.task[data.boundary]
    ranks = [
        _rank_correlation(gain[task == one], data.saved[task == one])
        for one in task.unique().tolist()
        if int((task == one).sum()) > 3 and float(data.saved[task == one].std()) > TELLING
    ]
    is_chosen, taken = gain - caution * spread > 0, picked(said, data, caution)
    return {
        "r2": float(1 - error / variance),
        "rank": fmean(ranks) if ranks else 0.0,
        "auc": float(roc_auc_score(data.is_adopted.numpy(), adopt.numpy())) if _both(data.is_adopted) else 0.5,
        "chosen": float(data.saved[is_chosen].mean()) if bool(is_chosen.any()) else 0.0,
        "share": float(is_chosen.float().mean()),
        "all": float(data.saved.mean()),
        "tries": float(len(data.saved)),
        "picked": taken.saved,
        "picked_error": taken.error,
        "picked_share": taken.share,
    }


def _of_tries(said: Tensor, data: Examples) -> Tensor:
    """``[T]``, what is said of each try."""
    return said[data.boundary].gather(1, data.action[:, None])[:, 0]


def _both(is_so: Tensor) -> bool:
    return bool(is_so.any() and not is_so.all())


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's; 0 where all are equal."""
    if float(one.std()) == 0 or float(other.std()) == 0:
        return 0.0
    return float(spearmanr(one.numpy(), other.numpy()).statistic)


@torch.no_grad()
def _average(mean: TamiyoNetwork, network: TamiyoNetwork, step: int) -> None:
    """Over the last steps; the longer it trains the more of them."""
    share = max(0.005, 1 / (step + 1))
    for kept, now in zip(mean.parameters(), network.parameters(), strict=True):
        kept.lerp_(now, share)
