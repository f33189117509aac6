"""One loss per sample from code that answers a batch with the mean."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from esper.contracts.errors import ConfigError

MEANS = frozenset(
    {
        F.binary_cross_entropy,
        F.binary_cross_entropy_with_logits,
        F.cross_entropy,
        F.huber_loss,
        F.l1_loss,
        F.mse_loss,
        F.nll_loss,
        F.smooth_l1_loss,
    }
)
"""Losses of torch that are means over what they return with ``reduction="none"``."""

BY_CLASS = frozenset({F.cross_entropy, F.nll_loss})
"""Of these, what has a target that may be ignored, and weights of classes."""

RTOL, ATOL = 1e-3, 1e-5
"""By how much two ways to the same loss may differ: batches are summed in another order than samples, also in half
precision."""


class SampleLosses:
    """Calls code that gives the mean loss of a batch, and gives one loss for each of its samples.

    Where that mean is one of torch's losses and nothing else, the batch takes one pass: the loss is also computed
    without being averaged. Whether that is right is tried once, on the first and the last sample alone. Else each
    sample takes a pass of its own.

    Args:
        loss_of: ``loss_of(batch)``, the mean loss of the batch, a scalar; without random numbers, so in eval mode. A
            sample's loss may not depend on the others of its batch.
    """

    def __init__(self, loss_of: Callable[[Any], Tensor]) -> None:
        self._loss_of = loss_of
        self._is_seen: bool | None = None

    @torch.no_grad()
    def __call__(self, batch: Any) -> Tensor:
        """Losses of a batch, of shape (samples,), in 32-bit floats.

        Args:
            batch: tensors whose first dimension is the samples, nested in tuples, lists and dicts; scalars and whatever
                is no tensor goes to all samples.

        Raises:
            ConfigError: if the tensors do not agree on how many samples there are, or ``loss_of`` gives no scalar.
        """
        samples = num_samples(batch)
        if self._is_seen is not False:
            with _Watch() as watch:
                mean = _scalar(self._loss_of(batch))
            losses = watch.losses(samples, mean)
            if losses is None:
                self._is_seen = False
            elif self._is_seen is None:
                ends = torch.stack([self._alone(batch, at, samples) for at in (0, samples - 1)])
                self._is_seen = _are_close(losses[[0, -1]], ends)
            if self._is_seen and losses is not None:
                return losses
        return torch.stack([self._alone(batch, at, samples) for at in range(samples)])

    def _alone(self, batch: Any, at: int, samples: int) -> Tensor:
        def one(tensor: Tensor) -> Tensor:
            return tensor[at : at + 1] if tensor.ndim and len(tensor) == samples else tensor

        return _scalar(self._loss_of(tree_map_only(Tensor, one, as_plain(batch))))


def num_samples(batch: Any) -> int:
    """How many samples a batch has: the first dimension of its tensors.

    Raises:
        ConfigError: if it has no tensors, or they do not agree.
    """
    sizes = {len(one) for one in tree_leaves(as_plain(batch)) if isinstance(one, Tensor) and one.ndim}
    if len(sizes) != 1:
        found = f"tensors of {sorted(sizes)} rows" if sizes else "no tensors"
        raise ConfigError(
            f"Which loss belongs to which held-out sample cannot be told from a batch with {found}. Hand over "
            "losses=..., a function that gives one loss per sample."
        )
    return sizes.pop()


def as_plain(batch: Any) -> Any:
    """A batch that is a mapping of another kind (``BatchEncoding``) as a dict, into which torch looks."""
    return dict(batch) if isinstance(batch, Mapping) else batch


class _Watch(TorchFunctionMode):
    """Computes losses without averaging them too, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Tensor, Tensor | None, Tensor] | None] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in MEANS:
            given = inspect.signature(func).bind(*args, **(kwargs or {}))
            given.apply_defaults()
            named = given.arguments
            if named["reduction"] == "mean":
                each = func(**named | {"reduction": "none"})
                self._calls.append((each, _shares(named) if func in BY_CLASS else None, result))
            else:
                self._calls.append(None)
        return result

    def losses(self, samples: int, mean: Tensor) -> Tensor | None:
        """Of each sample; None where ``mean`` is not the one loss that was computed, or is not made of samples."""
        if len(self._calls) != 1 or (call := self._calls[0]) is None:
            return None
        each, shares, result = call
        if each.numel() % samples or not _are_close(result, mean):
            return None
        rows = each.float().reshape(samples, -1)
        return rows.mean(1) if shares is None else rows.sum(1) / shares.float().reshape(samples, -1).sum(1)


def _shares(named: dict[str, Any]) -> Tensor | None:
    """What each element counts in a mean by classes."""
    target, weight = named["target"], named["weight"]
    if target.is_floating_point():  # probabilities of classes: all count the same
        return None
    counts = target != named["ignore_index"]
    return counts.float() if weight is None else counts * weight[torch.where(counts, target, 0)]


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
        raise ConfigError(f"The loss of a held-out batch is {what}; it must be one number, the mean over the batch.")
    return loss.detach().float().reshape(())


def _are_close(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one.float(), other.float(), rtol=RTOL, atol=ATOL, equal_nan=True))
