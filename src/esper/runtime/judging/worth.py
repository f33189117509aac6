"""What a graft is worth: paired tests on held-out samples that no other decision has seen."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Disjoint parts of the held-out samples, as int64 indices: to steer by, to judge on, to confirm once."""

    select: Tensor
    gate: Tensor
    confirm: Tensor


def split_samples(num_samples: int, groups: Tensor | None, seed: int) -> Split:
    """Deal held-out samples into select, gate and confirm parts, 1:3:1, without parting a group.

    Args:
        num_samples: held-out samples.
        groups: int64 ``[num_samples]``; samples of one number stay together. None: every sample by itself.
        seed: of the deal; the global random state is not touched.
    """
    unit_of = torch.arange(num_samples) if groups is None else torch.unique(groups, return_inverse=True)[1]
    num_units = int(unit_of.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    rank = torch.empty(num_units, dtype=torch.int64)
    rank[torch.randperm(num_units, generator=generator)] = torch.arange(num_units)
    share = rank[unit_of] * 5 // num_units  # 0 select, 1 to 3 gate, 4 confirm
    return Split(*(torch.nonzero(part).flatten() for part in (share == 0, (share >= 1) & (share <= 3), share == 4)))


class Gain(NamedTuple):
    """Mean paired improvement in loss, and its standard error; both None where they are not defined."""

    mean: float | None
    error: float | None

    @property
    def z(self) -> float | None:
        """mean / error; None where it is not defined. No difference anywhere is 0."""
        if self.mean is None or self.error is None:
            return None
        if self.error == 0:
            return 0.0 if self.mean == 0 else math.copysign(math.inf, self.mean)
        return self.mean / self.error


def paired_gain(losses: Tensor, reference: Tensor, groups: Tensor | None = None) -> Gain:
    """Mean paired improvement ``reference - losses``.

    Args:
        losses: float64 ``[n]``, of the model to be judged.
        reference: float64 ``[n]``, of what it must beat, on the same samples.
        groups: int64 ``[n]``; samples of one number are averaged first, since they are not independent.

    Returns:
        The mean, and standard deviation / sqrt(units). Not defined with fewer than two units, or for values that are
        not finite.
    """
    gain = reference - losses
    if groups is not None:
        unit_of = torch.unique(groups, return_inverse=True)[1]
        totals = torch.zeros(int(unit_of.max()) + 1, dtype=gain.dtype).index_add(0, unit_of, gain)
        gain = totals / torch.bincount(unit_of)
    if gain.numel() < 2 or not torch.isfinite(gain).all():
        return Gain(None, None)
    return Gain(float(gain.mean()), float(gain.std()) / math.sqrt(gain.numel()))


def paired_z(losses: Tensor, reference: Tensor, groups: Tensor | None = None) -> float | None:
    """z-score of the mean paired improvement; see :func:`paired_gain`."""
    return paired_gain(losses, reference, groups).z


def one_sided_p(z: float) -> float:
    """Probability of a standard normal value above ``z``."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def confirm_level(judged: int) -> float:
    """Level of the confirm test of the ``judged``-th lifecycle of a run (from 1): 0.05 * 6 / (pi^2 k^2).

    The levels of all lifecycles together sum to 0.05 (Euler's sum of 1/k^2; "alpha spending" in sequential testing,
    Foster and Stine, "Alpha-investing", JRSS B 2008).
    """
    return 0.05 * 6 / (math.pi**2 * judged**2)
