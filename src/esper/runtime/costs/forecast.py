"""What the steps of a window will cost, before they were made."""

from itertools import chain, repeat


class Forecast:
    """Remembers what the steps of this epoch and of the last one have cost.

    All batches of an epoch are of one size, but for the last, which may be smaller. Where they are not, nothing is
    foretold.
    """

    def __init__(self) -> None:
        self._epoch: list[list[int]] = []  # FLOPs of a step, and how many in a row had as many
        self._last: list[list[int]] = []

    def note(self, flops: int) -> None:
        """One more step."""
        if self._epoch and self._epoch[-1][0] == flops:
            self._epoch[-1][1] += 1
        elif len(self._epoch) < _TOO_MANY:
            self._epoch.append([flops, 1])

    def end_epoch(self) -> None:
        """An epoch is over."""
        self._last, self._epoch = self._epoch, []

    def of(self, steps: int) -> list[int] | None:
        """FLOPs of so many steps from now on; None where nobody can know."""
        runs = self._epoch or self._last
        if not runs or len(self._epoch) > 1 or not _is_regular(self._last):
            return None
        flops = runs[0][0]
        if not self._last:
            return [flops] * steps
        (main, _), (end, _) = self._last[0], self._last[-1]
        length = sum(count for _, count in self._last)
        done = self._epoch[0][1] % length if self._epoch else 0
        epoch = [*repeat(flops, length - 1), round(flops * end / main)]
        epochs = repeat(epoch, -(-(done + steps) // length))
        return list(chain.from_iterable(epochs))[done : done + steps]


_TOO_MANY = 3
"""Runs of equal steps in an epoch of which nothing is foretold."""


def _is_regular(runs: list[list[int]]) -> bool:
    return len(runs) < 2 or (len(runs) == 2 and runs[1][1] == 1)
