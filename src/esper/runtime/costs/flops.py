"""What a kind of work costs, by what was counted of it."""

from collections.abc import Callable
from typing import Any

from esper.kasmina.flops import FlopCounter
from esper.runtime.costs.flop_formula import Formula, interpolate
from esper.runtime.state.batches import Sizes

MOST_COUNTED = 32
"""Batches of one kind that are counted, of different sizes, beside those that are counted now and then."""

FIRST_RECOUNT = 64
"""After so many times a kind is counted once more, and whenever that number has doubled."""

MOST_REMEMBERED = 4096
"""Predictions that are kept, so that they are not worked out again."""


def count(work: Callable[[], object]) -> int:
    """FLOPs of ``work()``, which is done for real."""
    with FlopCounter() as counter:
        work()
    return counter.flops


class Counts:
    """What was counted of one kind of work, and what other sizes cost by that.

    Sizes that were counted cost what was counted. Others follow a polynomial (``flop_formula``) once it has predicted
    further counts to the last FLOP. Where none does, because of strides or because the work depends on the data, they
    are estimated from counted ones with about as many values.
    """

    def __init__(self) -> None:
        self._counted: dict[Sizes, int] = {}  # the mean where the same sizes cost now this, now that
        self._counts: dict[Sizes, int] = {}
        self._formula: Formula | None = Formula()
        self._predicted: dict[Sizes, int] = {}
        self._times = 0
        self.is_estimated = False

    def flops(self, sizes: Sizes) -> int | None:
        """What such work costs; None if it is to be counted."""
        if self._formula is not None and sizes in self._counted:
            return self._counted[sizes]
        if sizes not in self._predicted:
            found = None if self._formula is None else self._formula.predict(sizes)
            if found is None and sum(self._counts.values()) >= MOST_COUNTED:
                found, self.is_estimated = interpolate(sizes, self._counted), True
            if found is None:
                return None
            if len(self._predicted) >= MOST_REMEMBERED:
                self._predicted.clear()
            self._predicted[sizes] = found
        return self._predicted[sizes]

    def is_to_be_recounted(self) -> bool:
        """Whether it is time to count what is known once more; to be asked each time that such work is done."""
        self._times += 1
        return self._times >= FIRST_RECOUNT and self._times & (self._times - 1) == 0

    def learn(self, sizes: Sizes, flops: int) -> None:
        """Take in a count."""
        known, times = self._counted.get(sizes, flops), self._counts.get(sizes, 0) + 1
        self._counted[sizes], self._counts[sizes] = known + (flops - known) // times, times
        self._predicted.clear()
        is_new = times == 1
        if known != flops or (is_new and self._formula and not self._formula.learn(sizes, flops, self._counted)):
            self._formula = None

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        counts = [(sizes, self._counted[sizes], times) for sizes, times in self._counts.items()]
        return {"counts": counts, "times": self._times, "is_exact": self._formula is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for sizes, flops, times in state["counts"]:
            self.learn(sizes, flops)
            self._counts[sizes] = times
        self._times = state["times"]
        if not state["is_exact"]:
            self._formula = None


class FlopMeter:
    """Counts by kind of work."""

    def __init__(self) -> None:
        self._kinds: dict[object, Counts] = {}
        self._saved: dict[str, Counts] = {}  # by what their kind looks like, until it is met again

    def of(self, kind: object) -> Counts:
        """Those of a kind, which may be new."""
        found = self._kinds.get(kind)
        if found is None:
            saved = self._saved.pop(repr(kind), None) if self._saved else None
            self._kinds[kind] = found = saved or Counts()
        return found

    def state_dict(self) -> dict[str, Any]:
        """All counts."""
        known = self._saved | {repr(kind): one for kind, one in self._kinds.items()}
        return {kind: one.state_dict() for kind, one in known.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        saved = {kind: Counts() for kind in state}
        for kind, one in saved.items():
            one.load_state_dict(state[kind])
        self._kinds, self._saved = {}, saved
