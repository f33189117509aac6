"""The table of rows: the grown network, the host trained on, and a network of the grown size from the start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.observability.cited import Cited, Document, Name, Words, words
from esper.observability.measures import NOTE, RMSE, further, loss_gain
from esper.observability.verdict import INTERVALS, gains, result_document

NOTHING = words("-")
GAINS = f"A gain is positive where the grown network is better. {INTERVALS}"


@dataclass(frozen=True)
class TableRow:
    """One row.

    Args:
        name: ``"grown"``, ``"host_on"`` or ``"static"``.
        cells: one for every heading but the first; empty if the row is missing.
        missing: why the row is missing; None if it is there.
    """

    name: str
    cells: tuple[Words, ...]
    missing: Words | None = None


@dataclass(frozen=True)
class Table:
    """A table of words.

    Args:
        headings: of all columns; that of the names is empty.
        rows: from top to bottom.
        note: what columns mean that do not say it themselves; empty if there are none.
    """

    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    note: str = ""


def table(result: dict[str, Any]) -> Table:
    """The rows of ``result.json``, with the paired gains of the grown network where the result has them."""
    metric = result.get("metric", "accuracy")
    with_gains = any((result.get("gains") or {}).values()) and result["rows"]["grown"]["test_loss"] is not None
    of_metric = [metric] if metric else []
    more = further(result)
    headings = ["", "parameters", "training FLOPs", "test loss", *of_metric, *more]
    if with_gains:
        headings += [loss_gain(metric), *(f"gain in {name}, points" for name in of_metric)]
    headings += ["held-out loss", *of_metric, "learning rate"]
    document = result_document(result)
    rows = tuple(_row(document, name, bool(metric), more, with_gains) for name in ("grown", "host_on", "static"))
    notes = [GAINS] * with_gains + [NOTE] * (RMSE in more) + _steered_by(result.get("held_out"))
    return Table(tuple(headings), rows, " ".join(notes))


def text(result: dict[str, Any]) -> str:
    """The table as aligned text; gains stand below it, where lines would get too long."""
    whole = table(result)
    is_gain = [heading.startswith("gain") for heading in whole.headings]
    rest = [name for name, gain in zip(whole.headings, is_gain, strict=True) if not gain]
    first = aligned(rest, [(row, _columns(row, is_gain, False)) for row in whole.rows])
    if not any(is_gain):
        return "\n".join(filter(None, (first, whole.note)))
    names = ["", *(name for name, gain in zip(whole.headings, is_gain, strict=True) if gain)]
    others = [(row, _columns(row, is_gain, True)) for row in whole.rows if row.name != "grown"]
    return f"{first}\n\n{aligned(names, others)}\n{whole.note}"


def _steered_by(held_out: dict[str, int] | None) -> list[str]:
    """Of which samples the held-out columns are, where the result tells."""
    if held_out is None:
        return []
    what = f"{held_out['select']:,} of the {held_out['samples']:,} held-out samples"
    return [f"Held-out columns are over the {what}: those that a run steers by. The others judge what grows."]


def _columns(row: TableRow, is_gain: Sequence[bool], wanted: bool) -> list[Words]:
    return [cell for cell, gain in zip(row.cells, is_gain[1:], strict=False) if gain is wanted]


def aligned(headings: Sequence[str], rows: Sequence[tuple[TableRow, Sequence[Words]]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    lines = [list(headings)]
    for row, cells in rows:
        lines.append([row.name, *map(str, cells)] if row.missing is None else [row.name, f"- ({row.missing})"])
    complete = [line for line in lines if len(line) == len(headings)]
    widths = [max(len(line[column]) for line in complete) for column in range(len(headings))]
    widths[0] = max(len(line[0]) for line in lines)
    done = []
    for first, *rest in lines:
        whole = len(rest) == len(headings) - 1
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)] if whole else rest
        done.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join(done)


def _row(document: Document, name: str, has_metric: bool, more: dict[str, str], with_gains: bool) -> TableRow:
    result = document.content
    if result["rows"][name] is None:
        why = result["reasons"].get(name, "no reason was recorded")
        return TableRow(name, (), words(Name(why)))

    def measured(part: str) -> list[Words]:
        fields = [(f"{part}_loss", "loss")] + ([(f"{part}_metric", "percent")] if has_metric else [])
        return [_cell(document, name, field, spec) for field, spec in fields]

    cells = [_cell(document, name, "parameters", "number"), _cell(document, name, "train_flops", "flops")]
    cells += (
        measured("test")
        + [_further(document, name, one, spec) for one, spec in more.items()]
        + (_gains(result, name, has_metric) if with_gains else [])
        + measured("val")
    )
    rate = document.cite("rows", name, "lr", spec="plain")
    return TableRow(name, (*cells, words(rate, f" {result['rows'][name]['schedule']}")))


def _cell(document: Document, name: str, field: str, spec: str) -> Words:
    if document.content["rows"][name][field] is None:
        return NOTHING
    return words(document.cite("rows", name, field, spec=spec))


def _further(document: Document, name: str, measure: str, spec: str) -> Words:
    if document.content["rows"][name].get("test_further", {}).get(measure) is None:
        return NOTHING
    return words(document.cite("rows", name, "test_further", measure, spec=spec))


def _gains(result: dict[str, Any], name: str, has_metric: bool) -> list[Words]:
    found = {} if name == "grown" else {one.is_loss: one for one in gains(result, name)}
    cells = []
    for is_loss, spec in ((True, "nats"), (False, "points")) if has_metric else ((True, "nats"),):
        gain = found.get(is_loss)
        cells.append(NOTHING if gain is None else interval(gain.mean, gain.low, gain.high, spec))
    return cells


def interval(mean: Cited, low: Cited | None, high: Cited | None, spec: str) -> Words:
    """+2.3 [+0.4, +4.1]; without its interval if there is none."""
    said = words(mean.written(spec))
    if low is None or high is None:
        return said
    return said + words(" [", low.written(spec), ", ", high.written(spec), "]")
