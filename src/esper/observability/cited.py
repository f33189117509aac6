"""Numbers that name their source, and words that hold such numbers.

A source is a place in a file of a run directory: ``result.json#/rows/grown/test_loss`` (a JSON pointer, RFC 6901),
``audit.jsonl#17/gate_loss`` (line 17, counted from 1, and a pointer into it), ``config.yaml#/epochs``. On a page every
number is a ``<data>`` element that carries its value, its sources and how it is written, so that anyone can look it up.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup, escape

How = Literal["value", "ratio", "difference", "count", "sum", "paired_mean", "paired_low", "paired_high"]
"""How a number follows from its sources: the value itself, first by second, first less second, how many sources, their
sum; of two columns of samples the mean of first less second, groups averaged first, and the ends of its interval."""


def _signed(value: float, spec: str) -> str:
    text = format(value, "+" + spec)
    return text if float(text) else "+" + text[1:]  # a gain of -0.0 looks like a loss


def _flops(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 1e3:,.1f} k"


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


SPECS: dict[str, Callable[[float], str]] = {
    "number": lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.4g}",
    "plain": lambda value: f"{value:g}",
    "percent": lambda value: f"{value:.1%}",
    "share": lambda value: f"{value:.1%}" if 0 < value < 0.01 else f"{value:.0%}",
    "points": lambda value: _signed(100 * value, ".1f"),
    "points_apart": lambda value: f"{abs(100 * value):.1f}",
    "loss": lambda value: f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}",
    "nats": lambda value: _signed(value, ".3f") if abs(value) < 1e6 else f"{value:+.4g}",
    "nats_apart": lambda value: f"{abs(value):.3f}" if abs(value) < 1e6 else f"{abs(value):.4g}",
    "z": lambda value: _signed(value, ".1f"),
    "flops": _flops,
    "seconds": _seconds,
}
"""How a number is written, by name: ``points`` are hundredths, losses are in nats, ``..._apart`` leaves the sign to the
words around it."""


@dataclass(frozen=True, slots=True)
class Cited:
    """A number with its source. Prints as the text that a reader sees; Jinja takes it as an HTML element.

    Args:
        value: the number as it is.
        sources: where it comes from, at least one.
        how: how it follows from them.
        spec: how it is written, a key of :data:`SPECS`.
    """

    value: float
    sources: tuple[str, ...]
    how: How = "value"
    spec: str = "number"

    def __str__(self) -> str:
        return SPECS[self.spec](self.value)

    def __html__(self) -> Markup:
        origin = json.dumps([self.how, *self.sources])
        element = Markup('<data value="{}" data-from="{}" data-spec="{}">{}</data>')
        return element.format(json.dumps(self.value), origin, self.spec, str(self))

    def written(self, spec: str) -> "Cited":
        """The same number, written in another way."""
        return replace(self, spec=spec)


class Name(str):
    """A name from the run, or words quoted from its log: set as code on a page, for it may hold digits of its own."""

    __slots__ = ()

    def __html__(self) -> Markup:
        return Markup("<code>{}</code>").format(str(self))


class Words(tuple[str | Cited, ...]):
    """A sentence, a paragraph or a cell: text with cited numbers and names in it. Prints as text, and is HTML too."""

    __slots__ = ()

    def __str__(self) -> str:
        return "".join(map(str, self))

    def __html__(self) -> Markup:
        return Markup("").join(map(escape, self))

    def __add__(self, other: object) -> "Words":
        assert isinstance(other, tuple)
        return Words((*self, *other))


def words(*parts: "str | Cited | Words") -> Words:
    """Join text, numbers and other words."""
    flat: list[str | Cited] = []
    for part in parts:
        flat.extend(part if isinstance(part, Words) else (part,))
    return Words(part for part in flat if part != "")


def quoted(text: str) -> Words:
    """Words of the log at the end of a sentence."""
    return words(Name(text), "" if text.endswith((".", "!", "?")) else ".")


def sentences(found: "Sequence[Words]") -> Words:
    """Sentences one after the other; empty ones are left out."""
    return words(*(part for index, one in enumerate(filter(None, found)) for part in (" " if index else "", one)))


def listed(parts: "Sequence[str | Cited | Words]", last: str = " and ") -> Words:
    """One, two and three."""
    flat: list[str | Cited | Words] = []
    for index, part in enumerate(parts):
        if index:
            flat.append(last if index == len(parts) - 1 else ", ")
        flat.append(part)
    return words(*flat)


@dataclass(frozen=True, slots=True)
class Document:
    """Something that numbers are cited from.

    Args:
        name: of the file up to the pointer: ``"result.json#"`` or ``"audit.jsonl#17"``.
        content: what it holds.
    """

    name: str
    content: Any

    def source(self, *path: str | int) -> str:
        """The source of the value at ``path``."""
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
        return self.name + "".join(f"/{step}" for step in steps)

    def cite(self, *path: str | int, spec: str = "number") -> Cited:
        """The number at ``path``, which must be there."""
        value = self.content
        for step in path:
            value = value[step]
        return Cited(value, (self.source(*path),), "value", spec)


def line(file: str, numbered: tuple[int, dict[str, Any]]) -> Document:
    """A line of a log as a document."""
    return Document(f"{file}#{numbered[0]}", numbered[1])


def ratio(part: Cited, whole: Cited, spec: str = "share") -> Cited:
    """``part / whole``; 0 of nothing is 0."""
    value = part.value / whole.value if whole.value else 0.0
    return Cited(value, (*part.sources, *whole.sources), "ratio", spec)


def difference(one: Cited, other: Cited, spec: str = "number") -> Cited:
    """``one - other``."""
    return Cited(one.value - other.value, (*one.sources, *other.sources), "difference", spec)


def count(sources: Sequence[str]) -> Cited:
    """How many there are."""
    return Cited(len(sources), tuple(sources), "count")


def counted(number: Cited, one: str, many: str = "") -> Words:
    """1 seed, 2 seeds. ``many`` is said where an s alone does not make the plural."""
    return words(number, " ", one if number.value == 1 else many or f"{one}s")


def total(parts: Sequence[Cited], spec: str) -> Cited:
    """Their sum."""
    return Cited(sum(part.value for part in parts), tuple(part.sources[0] for part in parts), "sum", spec)
