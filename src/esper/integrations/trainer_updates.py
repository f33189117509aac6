"""One update of the Hugging Face Trainer, noted while it is made so that it can be made once more.

What a session calls a batch is here all that one step of the optimizer sees: several batches under accumulation, the
number of items that the loss is divided by, and where the random streams stood.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from esper.runtime.state.random_state import random_state, restore_random_state


@dataclass
class Update:
    """An update that is being made.

    Args:
        inputs: its batches, as the data loader gave them.
        num_items: what the loss is divided by, or None.
        random: the random streams before it. None until then: loading data draws from them too, which an arm does not.
        loss: sum over the batches done so far, a detached scalar; None before the first.
    """

    inputs: Sequence[Any]
    num_items: Tensor | int | None
    random: dict[str, Any] | None = None
    loss: Tensor | None = None

    @classmethod
    def of(cls, inputs: Sequence[Any], num_items: Tensor | int | None) -> "Update":
        """One that begins; what code takes out of its batches stays in these."""
        return cls([copy.copy(one) for one in inputs], num_items)

    @classmethod
    def again(cls, batch: dict[str, Any]) -> "Update":
        """One that is made once more, from :attr:`batch`; the random streams go back to where they stood."""
        restore_random_state(_opened(batch["random"]))
        return cls(**batch)

    def begin(self) -> None:
        """Note the random streams, once."""
        if self.random is None:
            self.random = _packed(random_state())

    def add(self, loss: Tensor) -> None:
        """The loss of one more of its batches."""
        self.loss = loss if self.loss is None else self.loss + loss

    @property
    def batch(self) -> dict[str, Any]:
        """What a session remembers of it."""
        return {"inputs": list(self.inputs), "num_items": self.num_items, "random": self.random}


def _packed(state: dict[str, Any]) -> dict[str, Any]:
    """With few objects, and of the same kinds every time."""
    version, words, gauss = state["python"]
    return state | {"python": (version, np.array(words, np.uint32), math.nan if gauss is None else gauss)}


def _opened(state: dict[str, Any]) -> dict[str, Any]:
    version, words, gauss = state["python"]
    return state | {"python": (version, tuple(words.tolist()), None if math.isnan(gauss) else gauss)}
