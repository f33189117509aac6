"""What the steps of a window will cost, before they were made."""

from itertools import chain, repeat


class Forecast:
    """Remembers what the steps of this epoch and of the last one have cost.

    All batches of an epoch are of one size, but for the last, which may be smaller; and all steps become dearer or
    cheaper where something has grown or was removed. Where it is otherwise, nothing is foretold.
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
        if not (self._epoch or self._last) or max(len(self._epoch), len(self._last)) == _TOO_MANY:
            return None
        if not self._last:
            return [self._epoch[-1][0]] * steps
        end, count = self._last[-1]
        main = self._last[-2][0] if count == 1 and len(self._last) > 1 else end
        flops = self._epoch[-1][0] if self._epoch else main
        length, done = (sum(count for _, count in runs) for runs in (self._last, self._epoch))
        epoch = [*repeat(flops, length - 1), round(flops * end / main)]
        epochs = repeat(epoch, -(-(done % length + steps) // length))
        return list(chain.from_iterable(epochs))[done % length :][:steps]


_TOO_MANY = 4
"""Runs of equal steps in an epoch of which nothing is foretold."""
