"""Batches in an order that can be taken up again in the middle of an epoch."""

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from esper.contracts.errors import CheckpointError, ConfigError


class BatchLoader:
    """Shuffled batches of equally long tensors; its state is one epoch and one position.

    The order depends on ``seed`` and the epoch alone and the global random state is not touched. Iterating goes on
    where the loader stands: after :meth:`load_state_dict`, or after a loop that was left early, ``for batch in loader``
    gives what is left of the epoch. The last partial batch of an epoch is dropped unless it is the only one.

    Args:
        tensors: of equal length ``[n, ...]``.
        batch_size: samples of a batch.
        seed: of the order.

    Raises:
        ConfigError: if there are no samples, lengths differ, ``batch_size`` is below 1, or an argument is of another
            kind.
    """

    def __init__(self, tensors: Sequence[Tensor], batch_size: int, seed: int) -> None:
        is_list = isinstance(tensors, list | tuple)
        if not is_list or not all(getattr(tensor, "shape", ()) for tensor in tensors):
            raise ConfigError(
                f"tensors must be a tuple such as (x, y) of tensors with a first axis, not {tensors!r:.80}."
            )
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1 or 0 in lengths:
            raise ConfigError(
                f"The tensors must be equally long and hold samples; their lengths are {sorted(lengths)}."
            )
        given: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
        for name, value in given.items():
            if type(value) is bool or not isinstance(value, Integral):
                raise ConfigError(f"{name} must be a whole number, not {value!r:.80}.")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        self._tensors = tuple(tensors)
        self._num_samples = lengths.pop()
        self._batch_size, self._seed = batch_size, seed
        self._epoch = self._position = 0
        self._shuffled: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return max(1, self._num_samples // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The batches that are left of this epoch; then the epoch counts as finished."""
        while self._position < len(self):
            self._position += 1
            yield self.batch_at(self._epoch * len(self) + self._position - 1)
        self._epoch, self._position = self._epoch + 1, 0

    @property
    def last_index(self) -> int | None:
        """Of the batch that was handed out last, counted from 0 over all epochs; None before the first."""
        index = self._epoch * len(self) + self._position - 1
        return None if index < 0 else index

    def batch_at(self, index: int) -> tuple[Tensor, ...]:
        """The batch that has this index, whichever epoch it is of. The loader stays where it stands.

        Args:
            index: as in :attr:`last_index`.
        """
        epoch, position = divmod(index, len(self))
        start = position * self._batch_size
        rows = self._order(epoch)[start : start + self._batch_size]
        return tuple(tensor[rows] for tensor in self._tensors)

    def state_dict(self) -> dict[str, int]:
        """Epochs finished, and batches handed out of the running one."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            CheckpointError: if an epoch of this loader is shorter than that.
        """
        epoch, position = int(state["epoch"]), int(state["position"])
        if not 0 <= position <= len(self):
            raise CheckpointError(
                f"The loader stood at batch {position} of an epoch, but an epoch now has {len(self)}. Data and batch "
                "size must be those of the run that is resumed."
            )
        self._epoch, self._position = epoch, position

    def _order(self, epoch: int) -> Tensor:
        if self._shuffled is None or self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._shuffled = epoch, torch.randperm(self._num_samples, generator=generator)
        return self._shuffled[1]
