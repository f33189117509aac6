"""From records to what a network learns from: boundaries as tensors, and what became of single actions there."""

# N boundaries, T tries

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.contracts.errors import DataError
from esper.learning.records import Record
from esper.tamiyo.learned.actions import legal_actions
from esper.tamiyo.learned.network import Padded
from esper.tamiyo.learned.tokens import Tokens, tokens

WORST, BEST = -0.5, 0.5
"""Shares of the loss; what lies beyond counts as these."""


class Examples(NamedTuple):
    """What records hold.

    Args:
        seen: ``[N]`` boundaries.
        task: int64 ``[N]``, index of the record that each is from.
        order: int64 ``[N]``, number of the boundary in its run that never grew; -1 in a run that had grown.
        heuristic: int64 ``[N]``, index of the heuristic's action; -1 where it waits, -2 where it was not asked.
        boundary: int64 ``[T]``, index of the boundary of each try.
        action: int64 ``[T]``, index of what was tried there.
        is_adopted: bool ``[T]``, whether it beat its twin.
        saved: ``[T]``, share of the loss beside the same run without it.
    """

    seen: Padded
    task: Tensor
    order: Tensor
    heuristic: Tensor
    boundary: Tensor
    action: Tensor
    is_adopted: Tensor
    saved: Tensor

    def of(self, tasks: Tensor) -> "Examples":
        """Those of some records: ``tasks`` is bool ``[records]``."""
        rows = tasks[self.task]
        tried = rows[self.boundary]
        new = rows.cumsum(0) - 1
        return Examples(
            seen=self.seen.rows(rows.nonzero()[:, 0]),
            task=self.task[rows],
            order=self.order[rows],
            heuristic=self.heuristic[rows],
            boundary=new[self.boundary[tried]],
            action=self.action[tried],
            is_adopted=self.is_adopted[tried],
            saved=self.saved[tried],
        )


def examples(records: Sequence[Record]) -> Examples:
    """What records hold; those in which nothing could be tried hold nothing.

    Raises:
        DataError: if that is so of all, or an action that was tried is none that is legal.
    """
    read: list[Tokens] = []
    about: list[tuple[int, int, int]] = []
    tried: list[tuple[int, int, bool, float]] = []
    for number, record in enumerate(records):
        first = len(read)
        for one in record.seen:
            read.append(tokens(one.observation, record.config, legal_actions(one.observation, record.config)))
            has_grown = one.observation.rounds_done > 0
            of_heuristic = -1 if one.heuristic is None else one.heuristic
            about.append((number, -1 if has_grown else one.boundary, -2 if has_grown else of_heuristic))
        for try_ in record.tried:
            if try_.action >= len(read[first + try_.seen].actions):
                raise DataError(
                    f"In the record of seed {record.seed} an action was tried that is none now. Collect anew."
                )
            gained = float(np.clip(try_.saved - record.saved_without(try_), WORST, BEST))
            tried.append((first + try_.seen, try_.action, try_.is_adopted, gained))
    if not tried:
        raise DataError("In none of the records could anything be tried. Collect more.")
    task, order, heuristic = (torch.tensor(column) for column in zip(*about, strict=True))
    boundary, action, is_adopted, saved = (torch.tensor(column) for column in zip(*tried, strict=True))
    return Examples(Padded.of(read), task, order, heuristic, boundary, action, is_adopted, saved)
