"""Several runs side by side: what each of them ended with, how it differs from the first, and in which options."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.observability.cited import (
    Cited,
    Document,
    Name,
    Words,
    count,
    difference,
    listed,
    quoted,
    ratio,
    sentences,
    words,
)
from esper.observability.curves import curves
from esper.observability.files import AUDIT, CONFIG, METRICS, RESULT
from esper.observability.grown import fossils, reports
from esper.observability.measures import loss_gain
from esper.observability.pairing import Paired, paired
from esper.observability.record import SAMPLES, Record
from esper.observability.rows import NOTHING, TableRow, aligned, interval
from esper.observability.verdict import INTERVALS

INVOCATION = ("output", "config", "resume")
"""Options of one call: that they differ says nothing about the runs."""

WIDEST = 30
"""Characters of an option's value in a terminal."""

GAINS = f"A gain is what a run is better by than the first one, and positive where it is better. {INTERVALS}"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; sources of numbers begin with the label of their run: ``digits-0/result.json#/...``.

    Args:
        labels: of the runs: the shortest end of its path that tells each from the others.
        headings: of the table; that of the labels is empty.
        rows: one per run.
        settings: options in which the runs differ, with the value of each run; ``"?"`` where it is not known.
        curves: learning curves of each run with its ``label``, and ``steps``, ``flops``, ``train_losses``,
            ``val_losses``, ``val_metrics``.
        remarks: what has to be known to read the table, one sentence each.
        metric: name of the tasks' metric; None if they have none.
    """

    labels: tuple[str, ...]
    headings: tuple[str, ...]
    rows: tuple[TableRow, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    curves: tuple[dict[str, Any], ...]
    remarks: tuple[Words, ...]
    metric: str | None

    @property
    def size(self) -> int:
        """Columns before the gains, that of the labels among them."""
        return next(index for index, name in enumerate(self.headings) if name.startswith("gain"))


def compare(records: Sequence[Record]) -> Comparison:
    """Put runs side by side; each is compared with the first. Damaged and unfinished runs are shown as far as known.

    Args:
        records: at least one. A directory that is named twice counts once.
    """
    unique = list({os.path.realpath(record.directory): record for record in reversed(records)}.values())[::-1]
    labels = labels_of([record.directory for record in unique])
    runs = [_Run(label, record) for label, record in zip(labels, unique, strict=True)]
    metric = next((name for run in runs if (name := run.metric) is not None), None)
    headings = ["", "task", "host", "seed", "status", "outcome", "parameters", "training FLOPs", "test loss"]
    headings += [f"test {metric}"] if metric else []
    headings += [loss_gain(metric)] + ([f"gain in {metric}, points"] if metric else [])
    gains = [_Gains(runs[0], run, bool(metric)) for run in runs]
    rows = [TableRow(run.label, (*run.cells(bool(metric)), *gain.cells)) for run, gain in zip(runs, gains, strict=True)]
    remarks = [*_remarks(records, runs), *(gain.remark for gain in gains if gain.remark)]
    if any(gain.has_interval for gain in gains):
        remarks.append(words(GAINS))
    return Comparison(
        labels=tuple(labels),
        headings=tuple(headings),
        rows=tuple(rows),
        settings=tuple(settings_apart(unique)),
        curves=tuple({"label": run.label, **curves(run.record)["run"]} for run in runs),
        remarks=tuple(remarks),
        metric=metric,
    )


def text(comparison: Comparison) -> str:
    """The comparison for a terminal: the table, the options that differ, and the remarks."""
    size = comparison.size
    tables = [aligned(comparison.headings[:size], [(row, row.cells[: size - 1]) for row in comparison.rows])]
    if len(comparison.rows) > 1:
        others = [(row, row.cells[size - 1 :]) for row in comparison.rows[1:]]
        tables.append(aligned(("", *comparison.headings[size:]), others))
    if comparison.settings:
        rows = [(TableRow(key, ()), [words(_short(value)) for value in values]) for key, values in comparison.settings]
        tables.append("The options that differ:\n" + aligned(("", *comparison.labels), rows))
    return "\n\n".join([*tables, *(["\n".join(map(str, comparison.remarks))] if comparison.remarks else [])])


def _short(value: str) -> str:
    return value if len(value) <= WIDEST else value[: WIDEST - 3] + "..."


def labels_of(directories: Sequence[Path]) -> list[str]:
    """The shortest end of every path that tells it from the others."""
    parts = [Path(os.path.realpath(directory)).parts for directory in directories]
    labels = []
    for own in parts:
        size = 1
        while sum(other[-size:] == own[-size:] for other in parts) > 1 and size < len(own):
            size += 1
        labels.append("/".join(own[-size:]))
    return labels


def settings_apart(records: Sequence[Record]) -> list[tuple[str, tuple[str, ...]]]:
    """Options that are not the same in all runs whose options are known, ``growth`` flattened."""
    known = [None if record.config is None else _flat(record.config) for record in records]
    keys = list(dict.fromkeys(key for one in known if one is not None for key in one))
    apart = []
    for key in keys:
        values = tuple("?" if one is None else _shown(one[key]) if key in one else "not there" for one in known)
        if key not in INVOCATION and len({value for value in values if value != "?"}) > 1:
            apart.append((key, values))
    return apart


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    growth = {f"growth.{key}": value for key, value in config.get("growth", {}).items()}
    return {key: value for key, value in config.items() if key != "growth"} | growth


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


class _Run:
    """One run, and its documents to cite from."""

    def __init__(self, label: str, record: Record) -> None:
        self.label, self.record = label, record
        self.result = Document(f"{label}/{RESULT}#", record.result)
        self.config = Document(f"{label}/{CONFIG}#", record.config)

    @property
    def metric(self) -> str | None:
        """Name of the task's metric."""
        return None if self.record.result is None else self.record.result.get("metric", "accuracy")

    @property
    def task(self) -> str:
        """What it learns, as far as known."""
        result, config = self.record.result or {}, self.record.config or {}
        return str(result.get("task") or config.get("data") or "?")

    def cells(self, has_metric: bool) -> list[Words]:
        """All but the gains."""
        result, config = self.record.result, self.record.config or {}
        host = str((result or {}).get("host") or config.get("host") or "?")
        fields = [("parameters", "number"), ("train_flops", "flops"), ("test_loss", "loss")]
        fields += [("test_metric", "percent")] if has_metric else []
        numbers = [self._number(field, spec) for field, spec in fields]
        return [words(Name(self.task)), words(Name(host)), self._seed(), self._status(), self._outcome(), *numbers]

    def _number(self, field: str, spec: str) -> Words:
        number = self.number(field, spec)
        return NOTHING if number is None else words(number)

    def number(self, field: str, spec: str = "number") -> Cited | None:
        """A field of the grown row; None if it is not known."""
        ended = self.record.of("finished")
        if self.record.result is None and ended and field == "train_flops":
            return Document(f"{self.label}/{AUDIT}#{ended[-1][0]}", ended[-1][1]).cite(field, spec=spec)
        if self.record.result is None or self.record.result["rows"]["grown"][field] is None:
            return None
        return self.result.cite("rows", "grown", field, spec=spec)

    def _seed(self) -> Words:
        for document in (self.result, self.config):
            if type((document.content or {}).get("seed")) is int:
                return words(document.cite("seed", spec="plain"))
        return words("?")

    def _status(self) -> Words:
        if self.record.status != "unfinished":
            return words(self.record.status)
        planned = self.record.config or {}
        if self.record.epochs and type(planned.get("epochs")) is int and planned["epochs"] > 0:
            last = self.record.epochs[-1]
            now = Document(f"{self.label}/{METRICS}#{last[0]}", last[1]).cite("epoch")
            return words("unfinished, ", ratio(now, self.config.cite("epochs")))
        return words("unfinished")

    def _outcome(self) -> Words:
        if self.record.status not in ("finished", "trained"):
            return NOTHING
        ended = reports(self.record)
        kept = [f"{self.label}/{one.source('outcome')}" for one in fossils(ended)]
        if kept:
            return words("grew ", count(kept))
        return words("grew nothing" if ended else "tried nothing")


class _Gains:
    """What a run is better by than the first one."""

    def __init__(self, first: _Run, run: _Run, has_metric: bool) -> None:
        columns = ["loss", "correct"] if has_metric else ["loss"]
        self.cells: list[Words] = [NOTHING for _ in columns]
        self.remark, self.has_interval = Words(), False
        if run is first or first.record.result is None or run.record.result is None or first.task != run.task:
            return
        for index, column in enumerate(columns):
            self.cells[index] = self._cell(first, run, column)

    def _cell(self, first: _Run, run: _Run, column: str) -> Words:
        field, spec = ("test_loss", "nats") if column == "loss" else ("test_metric", "points")
        diverged = next((one for one in (first, run) if one.number("test_loss") is None), None)
        if diverged is not None:
            self.remark = words("The test loss of ", Name(diverged.label), " is not finite: it is not compared.")
            return NOTHING
        plain = [one.number(field) for one in (first, run)]
        if plain[0] is None or plain[1] is None:
            return NOTHING
        found = paired(first.record, run.record, column)
        if isinstance(found, Paired):
            self.has_interval = True
            sources = tuple(f"{one.label}/{SAMPLES}#grown.{column}" for one in (first, run))
            if column != "loss":
                sources = sources[::-1]
            mean, low, high = (
                Cited(found.mean, sources, "paired_mean"),
                Cited(found.low, sources, "paired_low"),
                Cited(found.high, sources, "paired_high"),
            )
            return interval(mean, low, high, spec)
        self.remark = words("No interval for ", Name(run.label), ": ", quoted(found.reason))
        one, other = (plain[0], plain[1]) if column == "loss" else (plain[1], plain[0])
        return words(difference(one, other, spec))


def _remarks(records: Sequence[Record], runs: Sequence[_Run]) -> list[Words]:
    said: list[Words] = []
    if len(runs) < len(records):
        said.append(words("A directory was named more than once and is shown once."))
    if len(runs) == 1:
        said.append(words("There is one run only: nothing to compare it with."))
    tasks = dict.fromkeys(run.task for run in runs if run.record.result is not None)  # else only the data are known
    if len(tasks) > 1:
        said.append(
            words("The tasks differ (", listed([Name(task) for task in tasks]), "): their losses cannot be compared.")
        )
    first = runs[0]
    if first.record.result is None and len(runs) > 1:
        said.append(words(Name(first.label), " has no result, so that no gain over it can be told."))
    for run in runs:
        if run.record.faults:
            faults = [words(Name(fault)) for fault in run.record.faults]
            said.append(sentences([words("Not all of ", Name(run.label), " could be read:"), *faults]))
    return said
