"""Several learning-rate schedulers as one: those of several optimizers."""

from collections.abc import Sequence
from typing import Any


class Schedulers:
    """Steps all of them, one after the other, and has the states of all.

    Args:
        each: the schedulers, each with ``step``, ``state_dict`` and ``load_state_dict``.
    """

    def __init__(self, each: Sequence[Any]) -> None:
        self.each = tuple(each)

    def step(self) -> None:
        """One step of each."""
        for scheduler in self.each:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The states, and the classes that they are of."""
        return {
            "kinds": [type(scheduler).__name__ for scheduler in self.each],
            "each": [scheduler.state_dict() for scheduler in self.each],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: if the states are of other schedulers.
        """
        if state["kinds"] != self.state_dict()["kinds"]:
            raise ValueError(f"the states are of {state['kinds']}, not of {self.state_dict()['kinds']}")
        for scheduler, one in zip(self.each, state["each"], strict=True):
            scheduler.load_state_dict(one)
