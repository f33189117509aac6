"""The polynomial that FLOPs follow in the sizes of a batch, found exactly from a few batches that were counted.

Matrix products, convolutions and attention cost products of sizes, so what a step costs is a polynomial in those that
vary: linear in the number of samples, at most quadratic in a length. Any batch whose monomials are a combination of the
monomials of counted batches then costs the same combination of what they cost. All numbers are fractions: nothing is
rounded, and what is right is right to the last FLOP.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm, prod

from esper.runtime.state.batches import Sizes

DEGREES = (1, 2, 3)
"""Of the whole polynomial; the lowest that fits is taken."""

HIGHEST_POWER = 2
"""Of one size."""

CONFIRMATIONS = 2
"""So many further counts a part of the polynomial must have predicted before it is trusted."""


class Formula:
    """What the counts so far say of batches that were not counted."""

    def __init__(self) -> None:
        self._columns: _Columns | None = None
        self._polynomial = _Polynomial(0, DEGREES[0])

    def predict(self, sizes: Sizes) -> int | None:
        """FLOPs of a batch; None where the counts do not tell, or their polynomial is not trusted yet."""
        values = self._values(sizes)
        return None if values is None else self._polynomial.predict(values)

    def learn(self, sizes: Sizes, flops: int, counted: Mapping[Sizes, int]) -> bool:
        """Take in a count.

        Args:
            sizes: of a batch that was not counted before.
            flops: what it cost.
            counted: all counts, this one among them.

        Returns:
            Whether there still is a polynomial that fits all of them.
        """
        values = self._values(sizes)
        if values is not None and self._polynomial.take(values, flops):
            return True
        self._columns = columns = _Columns([_flat(one) for one in counted])
        for degree in DEGREES:
            self._polynomial = _Polynomial(len(columns), degree)
            samples = ((columns.variables(_flat(one)), flops) for one, flops in counted.items())
            if all(self._polynomial.take(values, flops) for values, flops in samples):
                return True
        return False

    def _values(self, sizes: Sizes) -> list[int] | None:
        """Those sizes that vary; None where others vary here than in what was counted."""
        flat = _flat(sizes)
        return self._columns.variables(flat) if self._columns is not None and self._columns.cover(flat) else None


class _Columns:
    """Which sizes vary, and which of them do so together, always with the same difference.

    Args:
        samples: the sizes of batches, each in a row.
    """

    def __init__(self, samples: Sequence[Sequence[int]]) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, column in enumerate(zip(*samples, strict=True)):
            groups.setdefault(tuple(size - column[0] for size in column), []).append(index)
        constant = [index for moves, group in groups.items() if not any(moves) for index in group]
        self._constant = {index: samples[0][index] for index in constant}
        together = [group for moves, group in groups.items() if any(moves)]
        self._varying = [group[0] for group in together]
        self._differences = [(i, group[0], samples[0][i] - samples[0][group[0]]) for group in together for i in group]

    def __len__(self) -> int:
        """How many vary independently."""
        return len(self._varying)

    def cover(self, sizes: Sequence[int]) -> bool:
        """Whether only those vary here too."""
        are_together = all(sizes[index] - sizes[first] == moved for index, first, moved in self._differences)
        return are_together and all(sizes[index] == size for index, size in self._constant.items())

    def variables(self, sizes: Sequence[int]) -> list[int]:
        """Those that vary."""
        return [sizes[index] for index in self._varying]


@dataclass
class _Row:
    """A combination of counted samples, reduced by those before it.

    Attributes:
        pivot: the first monomial that it has, with the factor 1.
        factors: of all monomials.
        flops: what the combination costs.
        confirmations: counts that were predicted with it, rightly.
    """

    pivot: int
    factors: list[Fraction]
    flops: Fraction
    confirmations: int = 0


class _Polynomial:
    """A polynomial of one degree, as far as samples determine it.

    A later row is reduced by the earlier ones, never the other way round: a batch of an odd shape that comes late does
    not take away the trust in what was known without it.

    Args:
        variables: how many there are.
        degree: the highest of a monomial.
    """

    def __init__(self, variables: int, degree: int) -> None:
        powers = itertools.product(range(HIGHEST_POWER + 1), repeat=variables)
        self._powers = sorted((one for one in powers if sum(one) <= degree), key=lambda one: (sum(one), one))
        self._rows: list[_Row] = []
        self._solved: tuple[list[int], int] | None = None  # all factors over one denominator, once all are trusted

    def take(self, values: Sequence[int], flops: int) -> bool:
        """Take in a sample; whether it agrees with those before."""
        rest, known, used = self._reduce(values)
        pivot = next((index for index, factor in enumerate(rest) if factor), None)
        if pivot is not None:
            scale = rest[pivot]
            self._rows.append(_Row(pivot, [factor / scale for factor in rest], (flops - known) / scale))
        elif known != flops:
            return False
        else:
            for row in used:
                row.confirmations += 1
            if len(self._rows) == len(self._powers) and all(map(_is_trusted, self._rows)):
                self._solved = self._solve()
        return True

    def predict(self, values: Sequence[int]) -> int | None:
        """What the samples say of another one; None if they do not tell, or are not trusted."""
        if self._solved is not None:
            factors, denominator = self._solved
            terms = (factor * _monomial(values, powers) for factor, powers in zip(factors, self._powers, strict=True))
            whole, rest = divmod(sum(terms), denominator)
            return None if rest else whole
        remainder, known, used = self._reduce(values)
        is_known = not any(remainder) and all(map(_is_trusted, used))
        return int(known) if is_known and known.denominator == 1 else None

    def _reduce(self, values: Sequence[int]) -> tuple[list[Fraction], Fraction, list[_Row]]:
        rest = [Fraction(_monomial(values, powers)) for powers in self._powers]
        known, used = Fraction(0), []
        for row in self._rows:
            factor = rest[row.pivot]
            if factor:
                rest = [one - factor * other for one, other in zip(rest, row.factors, strict=True)]
                known += factor * row.flops
                used.append(row)
        return rest, known, used

    def _solve(self) -> tuple[list[int], int]:
        found = [Fraction(0)] * len(self._powers)
        for row in reversed(self._rows):
            others = sum((one * factor for one, factor in zip(found, row.factors, strict=True)), Fraction(0))
            found[row.pivot] = row.flops - others
        denominator = lcm(*(one.denominator for one in found))
        return [int(one * denominator) for one in found], denominator


def _is_trusted(row: _Row) -> bool:
    return row.confirmations >= CONFIRMATIONS


def interpolate(sizes: Sizes, counted: Mapping[Sizes, int]) -> int:
    """About what a batch costs, from counted ones with as many values, or a few more and a few less."""
    number = _num_values(sizes)
    points: dict[int, list[int]] = {}
    for one, flops in counted.items():
        points.setdefault(_num_values(one), []).append(flops)
    below = max((one for one in points if one <= number), default=None)
    above = min((one for one in points if one >= number), default=None)
    if below is None or above is None:
        nearest = above if below is None else below
        assert nearest is not None
        return round(_mean(points[nearest]) * Fraction(number, max(1, nearest)))
    share = Fraction(number - below, max(1, above - below))
    return round(_mean(points[below]) * (1 - share) + _mean(points[above]) * share)


def _monomial(values: Sequence[int], powers: Sequence[int]) -> int:
    return prod(value**power for value, power in zip(values, powers, strict=True))


def _num_values(sizes: Sizes) -> int:
    return sum(map(prod, sizes))


def _flat(sizes: Iterable[Iterable[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(sizes))


def _mean(values: Sequence[int]) -> Fraction:
    return Fraction(sum(values), len(values))
