"""The model card: what an exported network is, how it came about, and what may be said of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from esper.observability.beginning import beginning, trained_weights
from esper.observability.cited import Document, Name, Words, counted, sentences, words
from esper.observability.files import RESULT
from esper.observability.grown import fossils, result_reports
from esper.observability.labels import seed_label
from esper.observability.measures import RMSE, further
from esper.observability.verdict import INTERVALS, comparison, headline, trying

_CARD = """\
---
library_name: pytorch
tags:
- esper
- grown-while-training
---

# {title}

{opening}

## How it came about

| | |
|---|---|
{facts}

{grafts}

## What that was worth

{worth}

{cost}

## How to load it

Nothing here needs Esper.

| file | what |
|---|---|
{files}

```python
{usage}
```

| weight | shape |
|---|---|
{weights}

## Limits

{limits}
"""

_GRAFTS = """\
| graft | place | parameters | from step | fossil since step |
|---|---|---|---|---|
{rows}"""


def card(
    result: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    *,
    files: Mapping[str, str],
    usage: str,
    weights: Mapping[str, Sequence[int]],
    version: str,
) -> str:
    """The README of an exported model, as Markdown.

    Args:
        result: what ``result.json`` holds or is going to hold. A control that has not been trained yet is null in
            ``rows``, and ``reasons`` says so.
        model: the ``model`` event of the run's log, for the host's type and size; None if there is none.
        files: what each file of the folder is, by its name; text in Markdown.
        usage: Python lines that load the model and use it.
        weights: shape of every weight, by its name.
        version: of Esper.
    """
    result = dict(result)
    document, kept = Document(f"{RESULT}#", result), fossils(result_reports(result))
    limits = "It comes from one run with one seed; another seed may end otherwise."
    if any((result.get("gains") or {}).values()):
        limits += " The intervals are over test samples of the same source only: they say nothing about other data."
    else:
        limits += " It was tested on samples of the same source only; nothing is known about other data."
    return _CARD.format(
        title="A grown network" if kept else "A trained network",
        opening=f"Trained by Esper {version} on {code(result['task'])}; {_what_grew(kept)}",
        facts="\n".join(f"| {name} | {what} |" for name, what in _facts(document, model, kept)),
        grafts=_table_of(kept) if kept else "No graft is part of it: it is the host, trained.",
        worth=markdown(_worth(result)),
        cost=markdown(_cost(document)),
        files="\n".join(f"| {code(name)} | {what} |" for name, what in files.items()),
        usage=usage,
        weights="\n".join(f"| {code(name)} | {list(shape)} |" for name, shape in weights.items()),
        limits=limits,
    )


def markdown(paragraph: Words) -> str:
    """A paragraph with its names set as code."""
    return "".join(code(part) if isinstance(part, Name) else str(part) for part in paragraph)


def code(name: str) -> str:
    """A name as it may stand in a line or a table of Markdown."""
    plain = " ".join(name.split()).replace("`", "'").replace("|", r"\|")
    return f"`{plain}`" if plain else '`""`'


def _worth(result: dict[str, Any]) -> Words:
    has_intervals = any((result.get("gains") or {}).values())
    intervals = words(INTERVALS if has_intervals else "")
    return sentences([headline(result), *comparison(result), beginning(result), intervals])


def _what_grew(kept: Sequence[Document]) -> str:
    if not kept:
        return "nothing grew in it."
    return "a part of it grew while it trained." if len(kept) == 1 else "parts of it grew while it trained."


def _facts(document: Document, model: Mapping[str, Any] | None, kept: Sequence[Document]) -> list[tuple[str, str]]:
    result = document.content
    now = document.cite("rows", "grown", "parameters")
    before = now.value - sum(one.content["parameters"] for one in kept)
    host = code(result["host"]) if "host" in result else "a host"
    if model is not None:
        before = model["parameters"]
        host += f", of type {code(model['type'])}"
    size = f"{before:,} parameter{'s' * (before != 1)}"
    facts = [
        ("host", f"{host} of {size}" if model is None else f"{host}, with {size}"),
        ("network", str(counted(now, "parameter"))),
    ]
    if settings := result.get("host_settings"):
        facts.insert(1, ("its settings", code(", ".join(f"{name} {_told(value)}" for name, value in settings.items()))))
    if (weights := trained_weights(result)) is not None:
        facts.append(("began with", f"trained weights, from {code(weights)}"))
    data = code(result["task"])
    if "test_set" in result:
        data += f", {counted(document.cite('test_set', 'samples'), 'test sample')}"
    facts.append(("data", data))
    row = result["rows"]["grown"]
    for name, field, spec in (("test loss", "test_loss", "loss"), (result.get("metric"), "test_metric", "percent")):
        if name is not None and row[field] is not None:
            facts.append(
                (f"{name}" if spec == "loss" else f"test {name}", str(document.cite("rows", "grown", field, spec=spec)))
            )
    for name, spec in further(result).items():
        if row["test_further"][name] is None:
            continue
        unit = f", in units of {code(result['target'])}" if name == RMSE and "target" in result else ""
        facts.append((f"test {name}", f"{document.cite('rows', 'grown', 'test_further', name, spec=spec)}{unit}"))
    if "device" in result:
        facts.append(("device", f"{result['device']}, in {result['precision']}"))
    if "seed" in result:
        facts.append(("seed", str(result["seed"])))
    return facts


def _told(value: int | Sequence[int]) -> str:
    return str(value) if isinstance(value, int) else "-".join(map(str, value))


def _table_of(kept: Sequence[Document]) -> str:
    rows = []
    for one in kept:
        fields = one.content
        place = seed_label(fields["layer_id"], fields["seed_id"])
        settings = ", ".join(f"{key} {value}" for key, value in fields["settings"].items())
        what = code(fields["blueprint"]) + (f" ({code(settings)})" if settings else "")
        cells = [what, code(place), *(str(one.cite(name)) for name in ("parameters", "born_step", "ended_step"))]
        rows.append(f"| {' | '.join(cells)} |")
    return _GRAFTS.format(rows="\n".join(rows))


def _cost(document: Document) -> Words:
    flops, seconds = (
        document.cite("rows", "grown", name, spec=spec)
        for name, spec in (("train_flops", "flops"), ("seconds", "seconds"))
    )
    which = "Its training" if trained_weights(document.content) is None else "Its training from those weights on"
    said = words(f"{which} took ", flops, "FLOPs and ", seconds)
    share = trying(document.content)
    if share is None:
        return said + words("; nothing was tried, so growth cost nothing.")
    return said + words("; ", share, " of the FLOPs went into trying what could grow.")
